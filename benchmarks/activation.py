"""AGLU against other activations, forward and backward."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from apa_det import aglu
from apa_det.kernels.ops import BACKENDS

from .common import DTYPES, ForwardBackward, add_common_arguments, measure, memory_method, report

EAGER_FORMULA, COMPILED_FORMULA = "formula, eager PyTorch", "formula, torch.compile"
COPY = "copy of the same bytes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 256, 200, 272])
    add_common_arguments(parser)
    parser.set_defaults(run=run)


def formula(z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """Compute AGLU with the formula of the paper and autograd."""
    return (z * (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)).to(z.dtype)


def run(args: argparse.Namespace) -> None:
    device = args.device
    z = torch.randn(args.shape, dtype=DTYPES[args.dtype], requires_grad=True, device=device)
    grad = torch.randn_like(z)
    parameters = [torch.full((1,), v, requires_grad=True, device=device) for v in (0.5, 1.1)]

    def forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> ForwardBackward:
        return ForwardBackward(partial(function, *inputs), list(inputs), grad)

    runs: dict[str, Callable] = {
        "SiLU": forward_backward(F.silu, z),
        "ReLU": forward_backward(F.relu, z),
    }
    ours = []
    for name, backend in BACKENDS.items():
        if name == "eager" or backend.supports(z, *parameters):
            ours.append(f"AGLU, {name}")
            runs[ours[-1]] = forward_backward(partial(aglu, backend=name), z, *parameters)
    runs[EAGER_FORMULA] = forward_backward(formula, z, *parameters)
    runs[COMPILED_FORMULA] = forward_backward(torch.compile(formula), z, *parameters)
    # Forward reads one tensor and writes one; backward reads two and writes one.
    source = torch.randn(max(5 * z.numel() // 2, 1), dtype=z.dtype, device=device)
    runs[COPY] = partial(torch.empty_like(source).copy_, source)
    results = measure(runs, args)
    title = f"AGLU, forward and backward of {tuple(z.shape)} {args.dtype}"
    report(title, results, ["SiLU", EAGER_FORMULA], args, memory_method(device))
    for name in ours:
        if "seconds" in results[name]:
            share = results[COPY]["seconds"] / results[name]["seconds"]
            print(f"{name} reaches {share:.0%} of the bandwidth of the copy.")
