"""The native backend: native.cpp on the CPU, which setup.py compiles for each instruction set.

It supports contiguous and channels-last tensors in float32 and bfloat16, with shared or per-channel
parameters. If the library could not be compiled, the eager backend is used instead. The functions
without a docstring are documented in eager.py.
"""

import ctypes
import functools
import logging
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .eager import Form, Gradients, Needs
from .layout import is_dense, is_supported, match_layout, sizes_along

logger = logging.getLogger(__name__)

INSTRUCTION_SETS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
"""Builds of native.cpp to load, best first, for each CPU capability of torch."""

_FORMS = ("apa", "log_apa", "logit_apa", "aglu")


class _PerChannel(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((f"stride_{d}", ctypes.c_int64) for d in "nc")]


class _Threads(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("parallel", "thread_number", "num_threads")),
        ("count", ctypes.c_int64),
    ]


class _Tensors(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("backward", "form", "is_bfloat16", "columns")),
        *((name, ctypes.c_int64) for name in ("N", "C", "S")),
        *((name, ctypes.c_void_p) for name in ("x", "residual", "grad", "out", "grad_residual")),
        *((name, _PerChannel) for name in ("scale", "shift", "lambda_", "kappa")),
        ("sums", ctypes.c_void_p),
        ("threads", _Threads),
    ]


class _Classes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("backward", "is_bfloat16", "N", "K")),
        *((name, ctypes.c_void_p) for name in ("logits", "labels")),
        *((name, _PerChannel) for name in ("lambda_", "kappa")),
        ("scarce", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("share", "clamp", "grad")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("grad_logits", "sums")),
        ("threads", _Threads),
    ]


def _load_library() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason."""
    problem = (
        "are not compiled: install a C++ compiler (g++ or clang++), then run pip install again"
    )
    folder = Path(__file__).parent
    for name in INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        for suffix in EXTENSION_SUFFIXES:
            file = folder / f"_native_{name}{suffix}"
            if file.exists():
                try:
                    return ctypes.CDLL(str(file)), ""
                except OSError as error:
                    problem = f"do not load: {error}"
    return None, problem


def _find_threads() -> _Threads:
    """Return the functions of torch's OpenMP library; null pointers if it has none."""
    functions = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
    for file in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        library = ctypes.CDLL(str(file))
        if all(hasattr(library, function) for function in functions):
            addresses = (ctypes.cast(library[f], ctypes.c_void_p).value for f in functions)
            return _Threads(*addresses)
    return _Threads()


_LIBRARY, _PROBLEM = _load_library()
_THREADS = _find_threads() if _LIBRARY else _Threads()


@functools.cache
def warn_if_missing() -> None:
    """Log once that there are no kernels for the CPU."""
    if _LIBRARY is None:
        logger.warning(
            "APA runs in plain PyTorch on the CPU, which is slower. The kernels of apa_det %s.",
            _PROBLEM,
        )


def supports(z: Tensor, *parameters: Tensor) -> bool:
    """Return whether this backend is available and supports these tensors."""
    return (
        _LIBRARY is not None
        and z.device.type == "cpu"
        and z.dtype in (torch.float32, torch.bfloat16)
        and is_dense(z)
        and all(
            p.dtype == torch.float32 and p.is_contiguous() and is_supported(p, z)
            for p in parameters
        )
    )


def forward(form: Form, z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    out = torch.empty_like(z)
    job = _job(form, z, out, lambda_=lambda_, kappa=kappa)
    _LIBRARY.apa_activation(ctypes.byref(job))
    return out


def backward(
    form: Form, grad: Tensor, z: Tensor, lambda_: Tensor, kappa: Tensor, needs: Needs = (True,) * 3
) -> Gradients:
    grad_z, grad = torch.empty_like(z), match_layout(grad, z)
    job = _job(form, z, grad_z, lambda_=lambda_, kappa=kappa)
    job.grad = grad.data_ptr()
    sums = _run_with_sums(job)
    return (
        grad_z if needs[0] else None,
        _reduce(sums[:, 2], lambda_, z) if needs[1] else None,
        _reduce(sums[:, 3], kappa, z) if needs[2] else None,
    )


def affine_aglu_forward(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, lambda_: Tensor, kappa: Tensor
) -> Tensor:
    out = torch.empty_like(x)
    job = _job("aglu", x, out, scale=scale, shift=shift, lambda_=lambda_, kappa=kappa)
    if residual is not None:
        residual = match_layout(residual, x)
        job.residual = residual.data_ptr()
    _LIBRARY.apa_activation(ctypes.byref(job))
    return out


def affine_aglu_backward(grad: Tensor, x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    scale, shift, residual, lambda_, kappa = others
    grad_x, grad, grad_residual = torch.empty_like(x), match_layout(grad, x), None
    job = _job("aglu", x, grad_x, scale=scale, shift=shift, lambda_=lambda_, kappa=kappa)
    job.grad = grad.data_ptr()
    if residual is not None:
        residual, grad_residual = match_layout(residual, x), torch.empty_like(x)
        job.residual, job.grad_residual = residual.data_ptr(), grad_residual.data_ptr()
    sums = _run_with_sums(job)
    parameters = enumerate((scale, shift, lambda_, kappa))
    by_scale, by_shift, *by_curve = (_reduce(sums[:, k], p, x) for k, p in parameters)
    return [grad_x, by_scale, by_shift, grad_residual, *by_curve]


def class_loss_forward(*inputs) -> Tensor:
    job = _class_job(*inputs)
    total = torch.empty((), dtype=torch.float64)
    job.sums = total.data_ptr()
    _LIBRARY.apa_class_loss(ctypes.byref(job))
    return total.float()


def class_loss_backward(grad: Tensor, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    job = _class_job(*inputs)
    logits, _, lambda_, kappa, *_ = inputs
    grad_logits = torch.empty_like(logits)
    sums = torch.empty(2, 1, logits.shape[1], dtype=torch.float64)
    job.backward, job.grad = True, grad.item()
    job.grad_logits, job.sums = grad_logits.data_ptr(), sums.data_ptr()
    _LIBRARY.apa_class_loss(ctypes.byref(job))
    by_parameter = (_reduce(s, p, logits) for s, p in zip(sums, (lambda_, kappa), strict=True))
    return grad_logits, *by_parameter


def _class_job(
    logits: Tensor,
    gt_classes: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    scarce: Tensor | None,
    share: Tensor | None,
    seed: int,
    clamp: float,
) -> _Classes:
    return _Classes(
        is_bfloat16=logits.dtype == torch.bfloat16,
        N=logits.shape[0],
        K=logits.shape[1],
        logits=logits.data_ptr(),
        labels=gt_classes.data_ptr(),
        lambda_=_per_channel(lambda_, logits),
        kappa=_per_channel(kappa, logits),
        scarce=None if scarce is None else scarce.data_ptr(),
        share=0 if share is None else share.item(),
        clamp=clamp or float("inf"),
        seed=seed,
        threads=_threads(),
    )


def _job(form: Form, x: Tensor, out: Tensor, **parameters: Tensor) -> _Tensors:
    per_channel = any(p.numel() > 1 for p in parameters.values())
    columns = per_channel and not x.is_contiguous()
    n, c, s = 1, 1, x.numel()
    if per_channel:
        n, c = x.shape[:2]
        s = x.numel() // max(n * c, 1)
        if s == 1 and all(p.dim() < x.dim() or p.shape[0] == 1 for p in parameters.values()):
            n, s, columns = 1, n, True
    return _Tensors(
        form=_FORMS.index(form),
        is_bfloat16=x.dtype == torch.bfloat16,
        columns=columns,
        N=n,
        C=c,
        S=s,
        x=x.data_ptr(),
        out=out.data_ptr(),
        threads=_threads(),
        **{name: _per_channel(p, x) for name, p in parameters.items()},
    )


def _run_with_sums(job: _Tensors) -> Tensor:
    """Run the backward pass; return the parameters' gradient sums, float64 (N, 4, C)."""
    sums = torch.empty(job.N, 4, job.C, dtype=torch.float64)
    job.backward, job.sums = True, sums.data_ptr()
    _LIBRARY.apa_activation(ctypes.byref(job))
    return sums


def _reduce(sums: Tensor, parameter: Tensor, x: Tensor) -> Tensor:
    """Reduce sums of shape (N, C) to the shape of the parameter."""
    shape = sizes_along(parameter, x)
    for dim in (0, 1):
        if shape[dim] == 1:
            sums = sums.sum(dim, keepdim=True)
    return sums.to(parameter.dtype).view(parameter.shape)


def _threads() -> _Threads:
    _THREADS.count = torch.get_num_threads()
    return _THREADS


def _per_channel(parameter: Tensor, x: Tensor) -> _PerChannel:
    n, c = sizes_along(parameter, x)
    aligned = parameter.reshape(n, c)
    return _PerChannel(
        parameter.data_ptr(), aligned.stride(0) if n > 1 else 0, aligned.stride(1) if c > 1 else 0
    )
