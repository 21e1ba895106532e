#!/usr/bin/env python
"""Measure apa_det against its rivals: median of interleaved repeats, as ratios, in one run."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from apa_det import aglu


def formula(z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """AGLU as it is written in the paper, left to autograd."""
    return z * (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict:
    """Median seconds of each run; a round of all of them before the first that counts."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def benchmark_activation(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    z = torch.randn(args.shape, device=device, requires_grad=True)
    grad = torch.randn_like(z)
    parameters = [torch.full((1,), v, device=device, requires_grad=True) for v in (0.5, 1.1)]

    def step(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*inputs), inputs, grad)

    seconds = interleaved(
        {
            "SiLU": step(F.silu, z),
            "ReLU": step(F.relu, z),
            "AGLU": step(aglu, z, *parameters),
            "AGLU, formula in eager PyTorch": step(formula, z, *parameters),
        },
        args.repeats,
        device,
    )
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"Forward and backward of {tuple(args.shape)} float32, median of {args.repeats}, "
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    rows = [(name, value, value / seconds["SiLU"]) for name, value in seconds.items()]
    print(tabulate(rows, headers=["", "seconds", "against SiLU"], floatfmt=("", ".3f", ".2f")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    activation = commands.add_parser("activation", help="AGLU against SiLU, ReLU and its formula")
    activation.add_argument("--shape", type=int, nargs="+", default=[2, 256, 200, 272])
    activation.add_argument("--repeats", type=int, default=7)
    activation.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    activation.set_defaults(run=benchmark_activation)
    args = parser.parse_args()
    if args.command is None:
        args = parser.parse_args(["activation"])
    args.run(args)


if __name__ == "__main__":
    main()
