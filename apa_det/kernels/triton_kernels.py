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

import torch
from torch import Tensor

from .eager import Form, Gradients, Needs
from .layout import is_dense, is_supported, match_layout, sizes_along

_HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_NUM_WARPS = 4
_NUM_THREADS = 32 * _NUM_WARPS
_TILE_CHANNELS = 128  # maximum channels of a channels-last tile
_CLASS_LOSS_TILE = 8, 128  # rows × classes
_TILES = 4  # tiles per program with sums, if there are at least _ENOUGH_TILES
_ENOUGH_TILES = 1 << 13  # to occupy all multiprocessors
_MAX_TILES = 1 << 18  # beyond it, programs process more tiles
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


def forward(form: Form, z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    out = torch.empty_like(z)
    _launch_forward(form, z, None, None, None, lambda_, kappa, out)
    return out


def backward(
    form: Form, grad: Tensor, z: Tensor, lambda_: Tensor, kappa: Tensor, needs: Needs = (True,) * 3
) -> Gradients:
    grad_z = torch.empty_like(z) if needs[0] else None
    inputs = grad, z, None, None, None, lambda_, kappa
    sums = _launch_backward(form, *inputs, grad_z, None, needs[1] or needs[2])
    if sums is None:
        return grad_z, None, None
    grad_lambda, grad_kappa = _reduce(sums, z, lambda_, kappa)
    return grad_z, grad_lambda if needs[1] else None, grad_kappa if needs[2] else None


def affine_aglu_forward(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, lambda_: Tensor, kappa: Tensor
) -> Tensor:
    out = torch.empty_like(x)
    _launch_forward("aglu", x, scale, shift, residual, lambda_, kappa, out)
    return out


def affine_aglu_backward(grad: Tensor, x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    scale, shift, residual, lambda_, kappa = others
    grad_x = torch.empty_like(x)
    grad_residual = None if residual is None else torch.empty_like(x)
    sums = _launch_backward("aglu", grad, x, *others, grad_x, grad_residual, True)
    *by_curve, by_scale, by_shift = _reduce(sums, x, lambda_, kappa, scale, shift)
    return [grad_x, by_scale, by_shift, grad_residual, *by_curve]


def class_loss_forward(*inputs) -> Tensor:
    return _launch_class_loss(None, *inputs).sum(dtype=torch.float64).float()


def class_loss_backward(grad: Tensor, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    logits, _, lambda_, kappa, *_ = inputs
    grad_logits = torch.empty_like(logits)
    sums = _launch_class_loss(grad, *inputs, grad_logits=grad_logits)
    return grad_logits, *_reduce(sums, logits, lambda_, kappa)


def _launch_forward(
    form: Form,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    out: Tensor,
) -> None:
    from .triton_device import forward

    if x.numel() == 0:
        return
    residual = None if residual is None else match_layout(residual, x)
    parameters = [None if p is None else p.contiguous() for p in (scale, shift, lambda_, kappa)]
    layout, n, c, s = _layout(form, x, parameters, 32 // x.element_size())
    grid = _ceil(s, layout["BLOCK_S"]), _ceil(c, layout["BLOCK_C"]), n
    with torch.cuda.device_of(x):
        forward[grid](x, residual, out, *parameters, c, s // layout["UNIT"], **layout)


def _launch_backward(
    form: Form,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    grad_x: Tensor | None,
    grad_residual: Tensor | None,
    with_sums: bool,
) -> Tensor | None:
    """Launch the backward pass; return the sums of each program if ``with_sums``.

    The sums have shape (2 or 4, N, programs, C): the gradients of λ, κ and, with ``scale``, of
    scale and shift.
    """
    from .triton_device import backward

    num_sums = 2 if scale is None else 4
    parameters = [None if p is None else p.contiguous() for p in (scale, shift, lambda_, kappa)]
    per_thread = 32 // x.element_size() if scale is None else 8
    layout, n, c, s = _layout(form, x, parameters, per_thread)
    if x.numel() == 0:
        return x.new_zeros(num_sums, n, 1, c, dtype=torch.float32)
    tiles, tiles_c = _ceil(s, layout["BLOCK_S"]), _ceil(c, layout["BLOCK_C"])
    num_tiles = tiles * tiles_c * n
    each = _TILES * _power_of_2(_ceil(num_tiles, _MAX_TILES)) if num_tiles >= _ENOUGH_TILES else 1
    while _ceil(tiles, each) * each > 1.125 * tiles:  # too many empty tiles
        each //= 2
    layout["TILES"] = each
    grid = _ceil(tiles, each), tiles_c, n
    sums = x.new_empty(num_sums, n, grid[0], c, dtype=torch.float32) if with_sums else None
    residual = None if residual is None else match_layout(residual, x)
    tensors = match_layout(grad, x), x, residual, grad_x, grad_residual, sums
    with torch.cuda.device_of(x):
        backward[grid](*tensors, *parameters, c, s // layout["UNIT"], **layout)
    return sums


def _launch_class_loss(grad: Tensor | None, *inputs, grad_logits: Tensor | None = None) -> Tensor:
    """Launch the class loss; return the sums of each program, shape (1 or 2, 1, programs, K)."""
    from .triton_class_loss import class_loss

    logits, gt_classes, lambda_, kappa, scarce, share, seed, clamp = inputs
    n, k = logits.shape
    num_sums = 1 if grad is None else 2
    if logits.numel() == 0:
        return logits.new_zeros(num_sums, 1, 1, k, dtype=torch.float32)
    block_n, block_k = _CLASS_LOSS_TILE
    grid = _ceil(n, block_n * _TILES), _ceil(k, block_k)
    sums = logits.new_empty(num_sums, 1, grid[0], k, dtype=torch.float32)
    lambda_, kappa = lambda_.contiguous(), kappa.contiguous()
    with torch.cuda.device_of(logits):
        class_loss[grid](
            *(grad, logits, gt_classes, lambda_, kappa, scarce, share, grad_logits, sums),
            *(n, k, seed, clamp or math.inf),
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


def _reduce(sums: Tensor, x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Return the gradient of each parameter, from its sums of shape (N, programs, C)."""
    totals = {}
    for along in {_along(p, x) for p in parameters}:
        dims = [2, *(dim for dim, name in ((1, "n"), (3, "c")) if name not in along)]
        totals[along] = sums.sum(dims, dtype=torch.float64)
    return [totals[_along(p, x)][k].float().view(p.shape) for k, p in enumerate(parameters)]


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
