"""The native backend: native_activation.cpp on the CPU.

It supports contiguous and channels-last tensors in float32 and bfloat16, with shared or per-channel
parameters. The functions without a docstring are documented in eager.py.
"""

import ctypes
import math
import struct

import torch
from torch import Tensor

from . import native_library
from .eager import Form, Gradients, Needs
from .layout import (
    empty_contiguous,
    is_dense,
    is_supported,
    match_layout,
    sizes_along,
    strides_along,
)

_FORMS = ("apa", "log_apa", "logit_apa", "aglu")
# x, residual, grad, out, grad of residual; scale, shift, λ, κ; their gradients; whether backward,
# number of threads; lower clamp of λ
_ARGUMENTS = struct.Struct("@13P2qf")


class _Layout(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("form", "is_bfloat16", "columns", "N", "C", "S")),
        *((name, ctypes.c_int64 * 4) for name in ("scale", "shift", "lambda_", "kappa")),
    ]


def supports(z: Tensor, *parameters: Tensor) -> bool:
    """Return whether this backend is available and supports these tensors."""
    return (
        native_library.LIBRARY is not None
        and z.device.type == "cpu"
        and z.dtype in (torch.float32, torch.bfloat16)
        and is_dense(z)
        and all(p.dtype == torch.float32 and is_supported(p, z) for p in parameters)
    )


def plan(form: Form, x: Tensor, parameters: dict[str, Tensor]) -> _Layout:
    """Return what the library needs to know about tensors, except for their addresses."""
    values = parameters.values()
    varies = any(p.numel() > 1 for p in values)
    columns = varies and not x.is_contiguous()
    n, c, s = 1, 1, x.numel()
    if varies:
        n, c = x.shape[:2]
        s = x.numel() // max(n * c, 1)
        if s == 1 and all(p.dim() < x.dim() or p.shape[0] == 1 for p in values):
            n, s, columns = 1, n, True
    alongs = {
        name: (*strides_along(p, x), *(size > 1 for size in sizes_along(p, x)))
        for name, p in parameters.items()
    }
    is_bfloat16 = x.dtype == torch.bfloat16
    return _Layout(_FORMS.index(form), is_bfloat16, columns, n, c, s, **alongs)


def forward(
    form: Form,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: _Layout | None = None,
) -> Tensor:
    layout = layout or plan(form, z, {"lambda_": lambda_, "kappa": kappa})
    out = torch.empty_like(z)
    pointers = z.data_ptr(), 0, 0, out.data_ptr(), 0, 0, 0, lambda_.data_ptr(), kappa.data_ptr()
    _run(layout, *pointers, 0, 0, 0, 0, False, torch.get_num_threads(), lambda_min)
    return out


def backward(
    form: Form,
    grad: Tensor,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    needs: Needs = (True,) * 3,
    lambda_min: float = -math.inf,
    layout: _Layout | None = None,
) -> Gradients:
    layout = layout or plan(form, z, {"lambda_": lambda_, "kappa": kappa})
    grad, grad_z = match_layout(grad, z), torch.empty_like(z)
    grad_lambda = empty_contiguous(lambda_) if needs[1] else None
    grad_kappa = empty_contiguous(kappa) if needs[2] else None
    _run(
        layout,
        *(z.data_ptr(), 0, grad.data_ptr(), grad_z.data_ptr(), 0),
        *(0, 0, lambda_.data_ptr(), kappa.data_ptr(), 0, 0),
        grad_lambda.data_ptr() if needs[1] else 0,
        grad_kappa.data_ptr() if needs[2] else 0,
        *(True, torch.get_num_threads(), lambda_min),
    )
    return grad_z if needs[0] else None, grad_lambda, grad_kappa


def affine_aglu_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: _Layout | None = None,
) -> Tensor:
    parameters = {"scale": scale, "shift": shift, "lambda_": lambda_, "kappa": kappa}
    layout = layout or plan("aglu", x, parameters)
    out = torch.empty_like(x)
    residual = None if residual is None else match_layout(residual, x)
    _run(
        layout,
        *(x.data_ptr(), 0 if residual is None else residual.data_ptr(), 0, out.data_ptr(), 0),
        *(p.data_ptr() for p in parameters.values()),
        *(0, 0, 0, 0, False, torch.get_num_threads(), lambda_min),
    )
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
    layout: _Layout | None = None,
) -> list[Tensor | None]:
    parameters = {"scale": scale, "shift": shift, "lambda_": lambda_, "kappa": kappa}
    layout = layout or plan("aglu", x, parameters)
    grad, grad_x, grad_residual = match_layout(grad, x), torch.empty_like(x), None
    gradients = [empty_contiguous(p) for p in parameters.values()]
    if residual is not None:
        residual, grad_residual = match_layout(residual, x), torch.empty_like(x)
    _run(
        layout,
        *(x.data_ptr(), 0 if residual is None else residual.data_ptr(), grad.data_ptr()),
        *(grad_x.data_ptr(), 0 if residual is None else grad_residual.data_ptr()),
        *(p.data_ptr() for p in (*parameters.values(), *gradients)),
        *(True, torch.get_num_threads(), lambda_min),
    )
    by_scale, by_shift, *by_curve = gradients
    return [grad_x, by_scale, by_shift, grad_residual, *by_curve]


def _run(layout: _Layout, *arguments: int | float) -> None:
    native_library.LIBRARY.apa_activation(
        ctypes.byref(layout),
        _ARGUMENTS.pack(*arguments),
        ctypes.byref(native_library.THREADS),
    )
