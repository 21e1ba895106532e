#!/usr/bin/env python3
"""Convert a checkpoint into one that MODEL.WEIGHTS takes, and account for every tensor of it.

It may hold a published detector or ImageNet model, a torchvision ResNet, or detectron2's own names,
as a .pth, .pkl or .safetensors file. It is read as data: nothing that it names is run.
"""

import argparse
import os
import sys

import torch
from detectron2.modeling import build_model

from apa_det.checkpoint import Conversion, convert, load_checkpoint, reverse
from apa_det.engine import read_config


def run(args: argparse.Namespace) -> None:
    folder = os.path.dirname(args.output) or "."
    if not args.output.endswith(".pth") or not os.path.isdir(folder):
        raise ValueError(f"OUT is {args.output}: name a .pth file, in a folder that exists.")
    checkpoint = load_checkpoint(args.input)
    model = None
    if args.config_file:
        cfg = read_config(args)
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg)
    try:
        conversion = convert(checkpoint, model, ema=args.ema)
        result = reverse(conversion.state) if args.reverse else conversion
        print(result.table())
        if not args.allow_partial:
            conversion.check()
            result.check()
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}") from error
    if model is None:
        print("Shapes, and that nothing is missing, are checked with --config-file only.")
    print_unfilled(conversion)
    if args.reverse:
        torch.save({"state_dict": result.state}, args.output)
    else:
        author = f"apa_det, from a {result.layout.value}"
        torch.save({"model": result.state, "__author__": author}, args.output)
    print(f"Wrote {args.output}: {len(result.state)} tensors.")


def print_unfilled(conversion: Conversion) -> None:
    names = conversion.unfilled()
    if names:
        print("What the file does not fill starts as the config says, at random or constant:")
        print(*names, sep="\n")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("input", metavar="IN", help="the checkpoint")
    result.add_argument("output", metavar="OUT", help="the .pth file to be written")
    result.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="config of the model that it is for, to check shapes and that nothing is missing",
    )
    result.add_argument("--ema", action="store_true", help="take the weights' moving averages")
    result.add_argument(
        "--allow-partial",
        action="store_true",
        help="write what fits where tensors are missing, unexpected or of another shape",
    )
    result.add_argument(
        "--reverse", action="store_true", help="write the names of the published detector"
    )
    result.add_argument(
        "--opts",
        default=[],
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="last on the line: changes to the config",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(argv))
    except (OSError, ValueError) as error:
        print(f"{os.path.basename(__file__)}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
