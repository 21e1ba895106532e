"""A training step of the quickstart's detector, compiled by torch.compile, against eager."""

import argparse

import torch
from detectron2.utils.events import EventStorage

from .common import add_common_arguments, measure, memory_method, report
from .gpu_training import batch_of, compile_parts, detector

REFERENCE = "APA"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=256, help="side of the images")
    parser.add_argument("--batch", type=int, default=2, help="images per batch")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    add_common_arguments(parser, dtype=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    batch = batch_of(args.batch, args.size)

    def step(layout: torch.memory_format, compiles: bool):
        model = detector(device).to(memory_format=layout)
        if compiles:
            compile_parts(model, backend=args.backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)

        def run_seeded() -> None:
            torch.manual_seed(0)
            with EventStorage():
                loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run_seeded

    layouts = {"": torch.contiguous_format, ", channels-last": torch.channels_last}
    runs = {
        f"APA{', compiled' * compiles}{name}": step(layout, compiles)
        for name, layout in layouts.items()
        for compiles in (False, True)
    }
    title = f"Training step of the quickstart's detector, {args.batch} images of {args.size}²"
    report(title, measure(runs, args), [REFERENCE], args, memory_method(args.device))
