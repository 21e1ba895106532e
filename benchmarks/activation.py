"""AGLU, APA and the SE gate against other activations and their formulas."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apa_det import AGLU, APA, aglu
from apa_det.kernels.backends import BACKENDS
from apa_det.layers import SEGate

from .common import DTYPES, ForwardBackward, add_common_arguments, measure, memory_method, report

EAGER_FORMULA, COMPILED_FORMULA = "formula, eager PyTorch", "formula, torch.compile"
COPY = "copy of the same bytes"


REUSE = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
"""Environment in which glibc reuses memory, so that page faults do not hide the computation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=int, nargs="+", default=[2, 256, 200, 272])
    _add_conditions(parser)
    parser.set_defaults(run=run)


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=int, nargs=4, default=[1, 256, 14, 14])
    _add_conditions(parser)
    parser.set_defaults(run=run_gate)


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser)
    parser.add_argument("--threads", type=int, help="number of threads of PyTorch")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU time, for a machine that also does other work"
    )
    parser.add_argument(
        "--reuse-memory", action="store_true", help="let glibc keep freed memory (see REUSE)"
    )


def _apply_conditions(args: argparse.Namespace) -> None:
    if args.reuse_memory and not os.environ.keys() >= REUSE.keys():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **REUSE})
    if args.threads:
        torch.set_num_threads(args.threads)


class FormulaGate(nn.Module):
    """The SE gate with the formula of the paper and autograd, in layers of PyTorch."""

    def __init__(self, num_channels: int):
        super().__init__()
        hidden = max(num_channels // 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.LayerNorm(num_channels)
        self.excitation = nn.Sequential(
            nn.Linear(num_channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_channels, bias=False),
            nn.Dropout(0.1),
        )
        self.lambda_param = nn.Parameter(torch.rand(1))
        self.kappa_param = nn.Parameter(torch.rand(1) - 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.excitation(self.norm(self.pool(x).flatten(1)))
        lambda_ = self.lambda_param.clamp(min=1e-4)
        gates = (lambda_ * torch.exp(-self.kappa_param * z) + 1) ** (-1 / lambda_)
        return x * gates[:, :, None, None]


def run_gate(args: argparse.Namespace) -> None:
    _apply_conditions(args)
    x = torch.randn(args.shape, dtype=DTYPES[args.dtype], device=args.device, requires_grad=True)
    grad = torch.randn_like(x)
    gates = {"SE gate": SEGate, "SE gate, formula, eager PyTorch": FormulaGate}
    runs: dict[str, Callable] = {}
    for name, gate in gates.items():
        gate = gate(args.shape[1]).to(args.device, x.dtype)
        runs[name] = ForwardBackward(partial(gate, x), [x, *gate.parameters()], grad)
        runs[f"{name}, forward"] = _without_gradients(gate, x)
    title = f"SE gate, forward and backward of {tuple(x.shape)} {args.dtype}"
    against = ["SE gate, formula, eager PyTorch", "SE gate, formula, eager PyTorch, forward"]
    report(title, measure(runs, args), against, args, memory_method(args.device))


def _without_gradients(module: nn.Module, z: Tensor) -> Callable[[], Tensor]:
    z = z.detach()

    @torch.no_grad()
    def forward() -> Tensor:
        return module(z)

    return forward


def formula(z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """Compute AGLU with the formula of the paper and autograd."""
    return (z * (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)).to(z.dtype)


def run(args: argparse.Namespace) -> None:
    _apply_conditions(args)
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
    for name, module in {"AGLU": AGLU(), "APA": APA()}.items():
        module = module.to(device)
        runs[f"{name}, module"] = forward_backward(lambda z, m=module: m(z), z)
        runs[f"{name}, module"].inputs += module.parameters()
        runs[f"{name}, module, forward"] = _without_gradients(module, z)
    runs["SiLU, forward"] = _without_gradients(nn.SiLU(), z)
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
