"""The library of native_*.cpp, which setup.py compiles for each instruction set.

It has no dependencies, so one build works with all versions of torch. If it could not be compiled,
the eager backend is used instead.
"""

import ctypes
import functools
import logging
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from .layout import sizes_along

logger = logging.getLogger(__name__)

INSTRUCTION_SETS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
"""Builds of the library to load, best first, for each CPU capability of torch."""


class PerChannel(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((f"stride_{d}", ctypes.c_int64) for d in "nc")]


class Threads(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("parallel", "thread_number", "num_threads")),
        ("count", ctypes.c_int64),
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


def _find_threads() -> Threads:
    """Return the functions of torch's OpenMP library; null pointers if it has none."""
    functions = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
    for file in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        library = ctypes.CDLL(str(file))
        if all(hasattr(library, function) for function in functions):
            addresses = (ctypes.cast(library[f], ctypes.c_void_p).value for f in functions)
            return Threads(*addresses)
    return Threads()


LIBRARY, PROBLEM = _load_library()
THREADS = _find_threads() if LIBRARY else Threads()


@functools.cache
def warn_if_missing() -> None:
    """Log once that there are no kernels for the CPU."""
    if LIBRARY is None:
        logger.warning(
            "APA runs in plain PyTorch on the CPU, which is slower. The kernels of apa_det %s.",
            PROBLEM,
        )


def reduce_sums(sums: Tensor, parameter: Tensor, x: Tensor) -> Tensor:
    """Reduce sums of shape (N, C) to the shape of the parameter."""
    shape = sizes_along(parameter, x)
    for dim in (0, 1):
        if shape[dim] == 1:
            sums = sums.sum(dim, keepdim=True)
    return sums.to(parameter.dtype).view(parameter.shape)


def threads() -> Threads:
    THREADS.count = torch.get_num_threads()
    return THREADS


def per_channel(parameter: Tensor, x: Tensor) -> PerChannel:
    n, c = sizes_along(parameter, x)
    aligned = parameter.reshape(n, c)
    return PerChannel(
        parameter.data_ptr(), aligned.stride(0) if n > 1 else 0, aligned.stride(1) if c > 1 else 0
    )
