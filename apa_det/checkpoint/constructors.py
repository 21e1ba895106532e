"""Constructors that unpickling may call: of tensors, arrays and plain objects."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .limits import MAX_DIMS


class Inert:
    """Placeholder for an object outside the allow-list: only its name is kept."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class NumpyType(Inert):
    """A numeric NumPy dtype, whose byte order is set after construction."""

    __slots__ = ("order",)

    def __init__(self, name: str):
        super().__init__(name)
        self.order = "="

    def dtype(self) -> np.dtype:
        return np.dtype(self.name).newbyteorder(self.order)


@dataclass(frozen=True, slots=True)
class Storage:
    """A torch storage: its bytes, a uint8 tensor of shape (N,), and the dtype of its elements."""

    data: Tensor
    dtype: torch.dtype

    def view(self, dtype: torch.dtype, offset: int, size: tuple, stride: tuple) -> Tensor:
        """Return the tensor of this size and stride that starts at element ``offset``.

        Raises:
            ValueError: it is invalid or exceeds the storage.
        """
        if max(len(size), len(stride)) > MAX_DIMS:
            raise ValueError(f"a tensor has {len(size)} dimensions")
        if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
            raise ValueError("a tensor has an invalid size")
        count = 0 if 0 in size else 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if (offset + count) * dtype.itemsize > len(self.data):
            raise ValueError("a tensor exceeds its storage")
        elements = self.data.view(dtype)
        return elements.as_strided(size, stride, elements.storage_offset() + offset)


_STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}


def storage_dtype(storage_class: Inert) -> torch.dtype:
    """Return the dtype of a named storage class.

    Raises:
        ValueError: it is not a supported storage class.
    """
    name = storage_class.name.replace("torch.cuda.", "torch.")
    if name not in _STORAGE_DTYPES:
        raise ValueError(f"unsupported storage type {name}")
    return _STORAGE_DTYPES[name]


def numpy_contents(data: str | bytes | bytearray, numpy_type: NumpyType) -> np.ndarray:
    """Return raw data as a one-dimensional array; a string holds bytes in latin-1."""
    data = data.encode("latin1") if type(data) is str else bytes(memoryview(data))
    return np.frombuffer(data, numpy_type.dtype())


def numpy_to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


def _rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    if isinstance(storage, Inert):
        return storage
    return _rebuild_tensor_of_dtype(
        storage, offset, size, stride, requires_grad, hooks, storage.dtype, metadata
    )


def _rebuild_tensor_of_dtype(
    storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None
):
    if type(storage) is not Storage:
        raise ValueError("a tensor has no storage")
    if metadata:
        raise ValueError("conjugated and negated tensor views are not supported")
    return storage.view(dtype, offset, size, stride)


def _numpy_type(code, *_):
    if type(code) is str and len(code) <= 8 and _is_numeric(code):
        return NumpyType(code)
    return Inert("numpy.dtype")


@lru_cache
def _is_numeric(code: str) -> bool:
    return re.fullmatch(r"[<>|=]?([biufc]\d+|[?bBhHiIlLqQefdFD])", code) is not None


def _numpy_scalar(numpy_type, data=None):
    if not isinstance(numpy_type, NumpyType):
        return Inert("numpy.generic")
    (value,) = numpy_contents(data, numpy_type).tolist()
    return value


def _numpy_array(data, numpy_type, shape, order):
    if not isinstance(numpy_type, NumpyType):
        return Inert("numpy.ndarray")
    return numpy_contents(data, numpy_type).reshape(shape, order=order).copy()


def _encode(text, encoding):
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"unsupported encoding {encoding} of bytes")
    return text.encode("latin1")


def _bytearray(data=b"", encoding="latin1"):
    return bytearray(_encode(data, encoding) if type(data) is str else memoryview(data))


def _device(kind, index=None):
    if type(kind) is not str or len(kind) > 32 or type(index) not in (int, type(None)):
        raise ValueError("invalid device")
    return kind if index is None else f"{kind}:{index}"


# Calls of these get a clear message. Calls of other unlisted names are not run either.
_RUNNERS = frozenset(
    "os nt posix pty subprocess sys importlib runpy ctypes socket shutil marshal pickle _pickle "
    "webbrowser timeit".split()
)
_EVALUATORS = frozenset("eval exec execfile compile __import__ open file input breakpoint".split())


def runs_code(name: str) -> bool:
    """Return whether a call of this name could run a program."""
    parts = name.split(".")
    if "builtins" in parts:
        return not _EVALUATORS.isdisjoint(parts)
    return not _RUNNERS.isdisjoint(parts[:-1])


CONSTRUCTORS: dict[str, Callable] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": lambda data=b"": bytes(memoryview(data)),
    "builtins.complex": complex,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy._core.numeric._frombuffer": _numpy_array,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.numeric._frombuffer": _numpy_array,
    "numpy.dtype": _numpy_type,
    "torch.Size": lambda size=(): tuple(size),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_of_dtype,
    "torch.device": _device,
}
