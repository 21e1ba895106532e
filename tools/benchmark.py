#!/usr/bin/env python
"""Measure apa_det against its rivals: median of interleaved repeats, as ratios, in one run."""

import argparse
import statistics
import time
from collections.abc import Callable

import evaluation_benchmark
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from apa_det import aglu
from apa_det.layers import CARAFE


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


def table(seconds: dict[str, float], title: str, args: argparse.Namespace) -> None:
    """Print the seconds, and what they are of the first."""
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(
        f"Forward and backward of {title} float32, median of {args.repeats}, "
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    first, against = next(iter(seconds.items()))
    rows = [(name, value, value / against) for name, value in seconds.items()]
    headers = ["", "seconds", f"against {first}"]
    print(tabulate(rows, headers=headers, floatfmt=("", ".3f", ".2f")))


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
    table(seconds, str(tuple(args.shape)), args)


def unfolded(module: CARAFE, x: Tensor) -> Tensor:
    """CARAFE as it is written in the paper: all neighbourhoods at once, left to autograd."""
    n, c, h, w = x.shape
    s, k = module.scale, module.kernel_size
    logits = module.content_encoder(module.channel_compressor(x))
    kernels = F.pixel_shuffle(logits, s).softmax(dim=1).view(n, k * k, h, s, w, s)
    neighbourhoods = F.unfold(x, k, padding=k // 2).view(n, c, k * k, h, w)
    out = torch.einsum("nckhw,nkhswt->nchswt", neighbourhoods, kernels)
    return out.reshape(n, c, h * s, w * s)


def benchmark_carafe(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    channels, size = args.channels, args.size
    x = torch.randn(args.rois, channels, size, size, device=device, requires_grad=True)
    grad = torch.randn(args.rois, channels, 2 * size, 2 * size, device=device)
    deconv = nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, 2), nn.ReLU()).to(device)
    carafe = CARAFE(channels).to(device)

    def step(run: Callable[[Tensor], Tensor], module: nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(x), [x, *module.parameters()], grad)

    seconds = interleaved(
        {
            "deconvolution": step(deconv, deconv),
            "CARAFE": step(carafe, carafe),
            "CARAFE, unfolded": step(lambda x: unfolded(carafe, x), carafe),
        },
        args.repeats,
        device,
    )
    table(seconds, f"{tuple(x.shape)}, upsampled by 2,", args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    activation = commands.add_parser("activation", help="AGLU against SiLU, ReLU and its formula")
    activation.add_argument("--shape", type=int, nargs="+", default=[2, 256, 200, 272])
    activation.add_argument("--repeats", type=int, default=7)
    activation.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    activation.set_defaults(run=benchmark_activation)
    carafe = commands.add_parser("carafe", help="CARAFE against the deconvolution it replaces")
    carafe.add_argument("--rois", type=int, default=128)
    carafe.add_argument("--channels", type=int, default=256)
    carafe.add_argument("--size", type=int, default=14)
    carafe.add_argument("--repeats", type=int, default=7)
    carafe.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    carafe.set_defaults(run=benchmark_carafe)
    evaluation_benchmark.add_arguments(
        commands.add_parser("evaluate", help="LVIS evaluation against its library and lvis-api")
    )
    args = parser.parse_args()
    if args.command is None:
        args = parser.parse_args(["activation"])
    args.run(args)


if __name__ == "__main__":
    main()
