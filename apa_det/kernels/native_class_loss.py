"""The class loss of the native backend; see native.py and native_class_loss.cpp."""

import ctypes

import torch
from torch import Tensor

from . import native_library
from .eager_class_loss import Inputs
from .native_library import PerChannel, Threads, threads


class _Classes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("backward", "is_bfloat16", "N", "K")),
        *((name, ctypes.c_void_p) for name in ("logits", "labels")),
        *((name, PerChannel) for name in ("lambda_", "kappa")),
        *((f"{name}weights", ctypes.c_void_p) for name in ("", "positive_", "negative_")),
        *((name, ctypes.c_void_p) for name in ("shift", "scarce")),
        *((name, ctypes.c_float) for name in ("share", "gamma", "clamp", "grad")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("grad_logits", "sums")),
        ("threads", Threads),
    ]


def class_loss_forward(inputs: Inputs) -> Tensor:
    job = _job(inputs)
    total = torch.empty((), dtype=torch.float64)
    job.sums = total.data_ptr()
    native_library.LIBRARY.apa_class_loss(ctypes.byref(job))
    return total.float()


def class_loss_backward(grad: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    job, logits = _job(inputs), inputs.logits
    grad_logits = torch.empty_like(logits)
    sums = torch.empty(2, logits.shape[1], dtype=torch.float64)
    job.backward, job.grad = True, grad.item()
    job.grad_logits, job.sums = grad_logits.data_ptr(), sums.data_ptr()
    native_library.LIBRARY.apa_class_loss(ctypes.byref(job))
    parameters = zip(sums, (inputs.lambda_, inputs.kappa), strict=True)
    return grad_logits, *(_reduce(s, p) for s, p in parameters)


def _job(inputs: Inputs) -> _Classes:
    n, k = inputs.logits.shape
    arrays = "weights", "positive_weights", "negative_weights", "shift", "scarce"
    pointers = {name: getattr(inputs, name) for name in arrays}
    return _Classes(
        is_bfloat16=inputs.logits.dtype == torch.bfloat16,
        N=n,
        K=k,
        logits=inputs.logits.data_ptr(),
        labels=inputs.gt_classes.data_ptr(),
        lambda_=_per_class(inputs.lambda_),
        kappa=_per_class(inputs.kappa),
        share=0 if inputs.share is None else inputs.share.item(),
        gamma=inputs.gamma,
        clamp=inputs.clamp or float("inf"),
        seed=0 if inputs.seed is None else inputs.seed.item(),
        threads=threads(),
        **{name: None if t is None else t.data_ptr() for name, t in pointers.items()},
    )


def _per_class(parameter: Tensor) -> PerChannel:
    return PerChannel(parameter.data_ptr(), 0, int(parameter.numel() > 1))


def _reduce(sums: Tensor, parameter: Tensor) -> Tensor:
    """Reduce sums per class to the shape of the parameter."""
    sums = sums.sum() if parameter.numel() == 1 else sums
    return sums.to(parameter.dtype).view(parameter.shape)
