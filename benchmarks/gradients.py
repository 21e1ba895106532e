"""Gradients of λ and κ, and of the weights around them, over batches of training images.

Adam moves a parameter by up to its learning rate per iteration if the gradient keeps its sign, and
by little if the sign changes from batch to batch. So the ratio of the gradient's mean over batches
to its standard deviation says how far a parameter can get.
"""

import argparse
import json
import math
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from apa_det.activation import APA
from apa_det.engine import read_job

HEADERS = ("parameters", "number", "|gradient|", "|mean| / std", "same sign", "moved")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, help="config of a training from scratch")
    parser.add_argument("--weights", help="its final checkpoint: measure there too")
    parser.add_argument("--batches", type=int, default=40, help="number of batches")
    parser.add_argument("--json", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    job = read_job(args.config_file)
    torch.manual_seed(max(0, job.seed))
    model = job.build_model().train()
    rows = {"initial": measure(model, job.build_train_loader(), args.batches)}
    if args.weights:
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        DetectionCheckpointer(model).load(args.weights)
        rows["final"] = measure(model, job.build_train_loader(), args.batches, initial)
    for name, table in rows.items():
        print(f"\nThe {name} model, medians over parameters; {args.batches} batches")
        print(tabulate([[k, *v] for k, v in table.items()], HEADERS, floatfmt=".2g"))
    noise = math.sqrt(2 / math.pi / args.batches)
    print(f"\nWithout any signal, |mean| / std is {noise:.2g} on average.")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


def measure(model: nn.Module, loader, num_batches: int, initial: dict | None = None) -> dict:
    """Return per kind of parameter: its number, and medians of the columns in ``HEADERS``."""
    kinds = _kinds(model)
    gradients = defaultdict(list)
    parameters = dict(model.named_parameters())
    for batch in tqdm(islice(loader, num_batches), total=num_batches, disable=None):
        model.zero_grad()
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        for name in kinds:
            if (gradient := parameters[name].grad) is not None:
                gradients[name].append(gradient.flatten()[:4096].double().numpy().copy())
    values = defaultdict(lambda: [[] for _ in range(4)])
    for name, rows in gradients.items():
        rows = np.stack(rows)
        mean, std = rows.mean(0), rows.std(0, ddof=1)
        moved = np.zeros_like(mean)
        if initial is not None:
            distance = parameters[name].detach() - initial[name]
            moved = distance.flatten()[:4096].abs().double().numpy()
        agreement = np.maximum((rows > 0).mean(0), (rows < 0).mean(0))
        ratio = np.abs(mean) / np.where(std > 0, std, np.nan)
        for column, value in zip(
            values[kinds[name]], (np.abs(rows).mean(0), ratio, agreement, moved), strict=True
        ):
            column.append(value[std > 0])
    return {
        kind: [sum(map(len, columns[0])), *(float(np.median(np.concatenate(c))) for c in columns)]
        for kind, columns in sorted(values.items())
    }


def _kinds(model: nn.Module) -> dict[str, str]:
    """Return the kind of each parameter to measure, by its name."""
    kinds = {}
    for path, module in model.named_modules():
        where = "score" if "predictor" in path else "gate" if ".gate" in path else "activation"
        for name, parameter in module.named_parameters(recurse=False):
            key = f"{path}.{name}"
            if isinstance(module, APA):
                kinds[key] = f"{'λ' if name == 'lambda_param' else 'κ'} of {where}s"
            elif isinstance(module, nn.BatchNorm2d):
                kinds[key] = "norms"
            elif parameter.ndim >= 2:
                kinds[key] = f"weights of the {path.partition('.')[0]}"
    return kinds
