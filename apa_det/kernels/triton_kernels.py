"""The triton backend: launches triton_device.py and triton_class_loss.py on a GPU.

It supports contiguous and channels-last tensors in float32, float16 and bfloat16, with shared or
per-channel float32 parameters, and computes in float32. Parameter gradients are summed in a fixed
order. It never synchronizes with the GPU. The functions without a docstring are documented in
eager.py.
"""

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from .eager import Form, Gradients, Needs
from .eager_class_loss import Inputs
from .layout import empty_contiguous, is_dense, is_supported, match_layout, sizes_along

_HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_NUM_WARPS = 4
_NUM_THREADS = 32 * _NUM_WARPS
_TILE_CHANNELS = 128  # maximum channels of a channels-last tile
_CLASS_LOSS_TILE = 8, 128  # rows × classes
_TILES = 4  # tiles per program with sums, if there are at least _ENOUGH_TILES
_ENOUGH_TILES = 1 << 13  # to occupy all multiprocessors
_MAX_TILES = 1 << 18  # beyond it, programs process more tiles
_REDUCED_ROWS, _REDUCED_CHANNELS = 8, 64  # tile of the sum of parameter gradients
_MAX_GRID = 65535  # maximum size of grid dimensions 1 and 2


def supports(z: Tensor, *parameters: Tensor) -> bool:
    """Return whether this backend is available and supports these tensors."""
    return (
        _HAS_TRITON
        and z.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and (_INTERPRETED or _has_gpu(z))
        and is_dense(z)
        and all(p.dtype == torch.float32 and is_supported(p, z) for p in parameters)
        and max(_view(z, parameters)[:2]) <= _MAX_GRID
    )


class Plan(NamedTuple):
    """What the kernels need to know about tensors, except for their addresses."""

    n: int
    c: int
    units: int
    forward: dict
    forward_grid: tuple[int, int, int]
    backward: dict
    backward_grid: tuple[int, int, int]
    alongs: dict[str, str]


def plan(form: Form, x: Tensor, parameters: dict[str, Tensor]) -> Plan:
    """Return grids and constants of the kernels for tensors of this layout."""
    values = [parameters.get(name) for name in ("scale", "shift", "lambda_", "kappa")]
    layout, n, c, s = _layout(form, x, values, 32 // x.element_size())
    grid = _ceil(s, layout["BLOCK_S"]), _ceil(c, layout["BLOCK_C"]), n
    per_thread = 8 if "scale" in parameters else 32 // x.element_size()
    backward, *_ = _layout(form, x, values, per_thread)
    tiles, tiles_c = _ceil(s, backward["BLOCK_S"]), _ceil(c, backward["BLOCK_C"])
    num_tiles = tiles * tiles_c * n
    each = _TILES * _power_of_2(_ceil(num_tiles, _MAX_TILES)) if num_tiles >= _ENOUGH_TILES else 1
    while _ceil(tiles, each) * each > 1.125 * tiles:  # too many empty tiles
        each //= 2
    backward["TILES"] = each
    backward_grid = _ceil(tiles, each), tiles_c, n
    alongs = {name: _along(p, x) for name, p in parameters.items()}
    return Plan(n, c, s // layout["UNIT"], layout, grid, backward, backward_grid, alongs)


def forward(
    form: Form,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: Plan | None = None,
) -> Tensor:
    layout = layout or plan(form, z, {"lambda_": lambda_, "kappa": kappa})
    out = torch.empty_like(z)
    _launch_forward(layout, z, None, None, None, lambda_, kappa, lambda_min, out)
    return out


def backward(
    form: Form,
    grad: Tensor,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    needs: Needs = (True,) * 3,
    lambda_min: float = -math.inf,
    layout: Plan | None = None,
) -> Gradients:
    layout = layout or plan(form, z, {"lambda_": lambda_, "kappa": kappa})
    grad_z = torch.empty_like(z) if needs[0] else None
    grad_lambda = empty_contiguous(lambda_) if needs[1] else None
    grad_kappa = empty_contiguous(kappa) if needs[2] else None
    inputs = grad, z, None, None, None, lambda_, kappa, lambda_min
    _launch_backward(layout, *inputs, grad_z, None, [grad_lambda, grad_kappa])
    return grad_z, grad_lambda, grad_kappa


def affine_aglu_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: Plan | None = None,
) -> Tensor:
    layout = layout or plan("aglu", x, _by_name(scale, shift, lambda_, kappa))
    out = torch.empty_like(x)
    _launch_forward(layout, x, scale, shift, residual, lambda_, kappa, lambda_min, out)
    return out


def affine_aglu_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: Plan | None = None,
) -> list[Tensor | None]:
    layout = layout or plan("aglu", x, _by_name(scale, shift, lambda_, kappa))
    grad_x = torch.empty_like(x)
    grad_residual = None if residual is None else torch.empty_like(x)
    gradients = [empty_contiguous(p) for p in (lambda_, kappa, scale, shift)]
    inputs = grad, x, scale, shift, residual, lambda_, kappa, lambda_min
    _launch_backward(layout, *inputs, grad_x, grad_residual, gradients)
    *by_curve, by_scale, by_shift = gradients
    return [grad_x, by_scale, by_shift, grad_residual, *by_curve]


def _by_name(scale: Tensor, shift: Tensor, lambda_: Tensor, kappa: Tensor) -> dict[str, Tensor]:
    return {"scale": scale, "shift": shift, "lambda_": lambda_, "kappa": kappa}


def class_loss_forward(inputs: Inputs) -> Tensor:
    return _launch_class_loss(None, inputs, None).sum(dtype=torch.float64).float()


def class_loss_backward(grad: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    grad_logits = torch.empty_like(inputs.logits)
    sums = _launch_class_loss(grad, inputs, grad_logits)
    parameters = {"lambda_": inputs.lambda_, "kappa": inputs.kappa}
    gradients = [empty_contiguous(p) for p in parameters.values()]
    alongs = {name: _along(p, inputs.logits) for name, p in parameters.items()}
    _reduce(sums, inputs.lambda_, -math.inf, gradients, alongs)
    return grad_logits, *gradients


def _launch_forward(
    layout: Plan,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float,
    out: Tensor,
) -> None:
    from .triton_device import forward

    if x.numel() == 0:
        return
    residual = None if residual is None else match_layout(residual, x)
    parameters = [None if p is None else p.contiguous() for p in (scale, shift, lambda_, kappa)]
    with torch.cuda.device_of(x):
        forward[layout.forward_grid](
            *(x, residual, out, *parameters, lambda_min, layout.c, layout.units), **layout.forward
        )


def _launch_backward(
    layout: Plan,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float,
    grad_x: Tensor | None,
    grad_residual: Tensor | None,
    gradients: list[Tensor | None],
) -> None:
    """Launch the backward pass, then the sum of the gradients of λ, κ, scale and shift if any."""
    from .triton_device import backward

    if x.numel() == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
        return
    sums = None
    if any(gradient is not None for gradient in gradients):
        shape = len(gradients), layout.n, layout.backward_grid[0], layout.c
        sums = x.new_empty(shape, dtype=torch.float32)
    grad = match_layout(grad, x)
    residual = None if residual is None else match_layout(residual, x)
    parameters = [None if p is None else p.contiguous() for p in (scale, shift, lambda_, kappa)]
    with torch.cuda.device_of(x):
        backward[layout.backward_grid](
            *(grad, x, residual, grad_x, grad_residual, sums),
            *(*parameters, lambda_min, layout.c, layout.units),
            **layout.backward,
        )
        if sums is not None:
            _reduce(sums, parameters[2], lambda_min, gradients, layout.alongs)


def _reduce(
    sums: Tensor,
    lambda_: Tensor,
    lambda_min: float,
    gradients: Sequence[Tensor | None],
    alongs: dict[str, str],
) -> None:
    """Sum the gradients of λ, κ, scale and shift.

    Args:
        sums: shape (2 or 4, N, programs, C).
        lambda_, lambda_min: elements of λ below ``lambda_min`` get no gradient.
        gradients: the results, contiguous; None: not needed.
        alongs: for each name of a parameter, :func:`_along`.
    """
    from .triton_device import reduce

    _, n, programs, c = sums.shape
    names = "lambda_", "kappa", "scale", "shift"
    keys = [alongs.get(name, "") for name in names]
    grid_c = _ceil(c, _REDUCED_CHANNELS) if any("c" in key for key in keys) else 1
    grid_n = n if any("n" in key for key in keys) else 1
    reduce[(grid_c, grid_n, len(gradients))](
        *(sums, lambda_, lambda_min, *gradients, *([None] * (4 - len(gradients)))),
        *(n, programs, c),
        **dict(zip(("LAMBDA", "KAPPA", "SCALE", "SHIFT"), keys, strict=True)),
        BLOCK_C=_REDUCED_CHANNELS,
        BLOCK=_REDUCED_ROWS * _REDUCED_CHANNELS,
        num_warps=_NUM_WARPS,
    )


def _launch_class_loss(grad: Tensor | None, inputs: Inputs, grad_logits: Tensor | None) -> Tensor:
    """Launch the class loss; return the sums of each program, shape (1 or 2, 1, programs, K)."""
    from .triton_class_loss import class_loss

    logits, gt_classes, lambda_, kappa, *constants, seed, gamma, clamp = inputs
    n, k = logits.shape
    num_sums = 1 if grad is None else 2
    if logits.numel() == 0:
        return logits.new_zeros(num_sums, 1, 1, k, dtype=torch.float32)
    block_n, block_k = _CLASS_LOSS_TILE
    grid = _ceil(n, block_n * _TILES), _ceil(k, block_k)
    sums = logits.new_empty(num_sums, 1, grid[0], k, dtype=torch.float32)
    with torch.cuda.device_of(logits):
        class_loss[grid](
            *(grad, logits, gt_classes, lambda_, kappa, *constants, grad_logits, sums),
            *(n, k, 0 if seed is None else seed.item(), gamma, clamp or math.inf),
            SIMPLE=inputs.shift is None and gamma == 0,
            LAMBDA=int(lambda_.numel() > 1),
            KAPPA=int(kappa.numel() > 1),
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            TILES=_TILES,
            num_warps=_NUM_WARPS,
        )
    return sums


def _layout(
    form: Form, x: Tensor, parameters: list[Tensor | None], per_thread: int
) -> tuple[dict, int, int, int]:
    """Return the kernel constants for ``per_thread`` elements of x per thread, and N, C, S."""
    n, c, s, columns = _view(x, parameters)
    size = per_thread * _NUM_THREADS
    if columns:
        block_c = min(_power_of_2(c), _TILE_CHANNELS)
        block_s = min(_power_of_2(s), size // block_c)
    else:
        block_s = min(_power_of_2(s), size)
        block_c = min(_power_of_2(c), size // block_s)
    names = "SCALE", "SHIFT", "LAMBDA", "KAPPA"
    layout = {
        **{name: _along(p, x) for name, p in zip(names, parameters, strict=True)},
        "FORM": form,
        "COLUMNS": columns,
        "UNIT": 1 if columns else next(unit for unit in (16, 4, 1) if s % unit == 0),
        "BLOCK_C": block_c,
        "BLOCK_S": block_s,
        "num_warps": _NUM_WARPS,
    }
    return layout, n, c, s


def _view(x: Tensor, parameters: Sequence[Tensor | None]) -> tuple[int, int, int, bool]:
    """Return N, C, S of x for parameters per n and c, and whether C is fastest in memory."""
    along = {_along(p, x) for p in parameters}
    if along == {""}:
        return 1, 1, x.numel(), False
    n, c = x.shape[:2]
    s = x.numel() // max(n * c, 1)
    if s == 1 and along <= {"", "c"}:
        return 1, c, n, True
    return n, c, s, s == 1 or not x.is_contiguous()


def _along(parameter: Tensor | None, x: Tensor) -> str:
    """Return which of the dimensions n and c of x a parameter varies along: "", "n", "c", "nc"."""
    if parameter is None:
        return ""
    n, c = sizes_along(parameter, x)
    return "n" * (n != 1) + "c" * (c != 1)


def _has_gpu(x: Tensor) -> bool:
    """Return whether x is on a GPU that Triton supports; bfloat16 needs compute capability 8."""
    if x.device.type != "cuda":
        return False
    needed = 8 if x.dtype == torch.bfloat16 else 7
    return torch.cuda.get_device_properties(x.device).major >= needed


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_2(size: int) -> int:
    """Return the smallest power of 2 >= size."""
    return 1 << (size - 1).bit_length()
