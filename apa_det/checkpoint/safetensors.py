"""Reader of the safetensors format: a JSON header followed by the bytes of the tensors."""

import json
import math
from typing import BinaryIO

import torch
from torch import Tensor

from .limits import MAX_DIMS, TENSOR, Budget

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file of ``size`` bytes with these first 9 bytes is in this format."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def read_safetensors(file: BinaryIO, size: int, budget: Budget) -> dict[str, Tensor]:
    """Return the tensors of a file of ``size`` bytes by name; its metadata is ignored.

    Raises:
        ValueError: the file violates the format, has an unsupported dtype, or exceeds the budget.
    """
    header_size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(header_size), object_pairs_hook=_without_duplicates)
    header.pop("__metadata__", None)
    tensors, position = {}, 0
    budget.spend(TENSOR * len(header))
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        shape = entry["shape"]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"unsupported dtype {entry['dtype']} of {name}")
        dtype = _DTYPES[entry["dtype"]]
        if len(shape) > MAX_DIMS:
            raise ValueError(f"{name} has {len(shape)} dimensions")
        if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
            raise ValueError(f"{name} has an invalid shape or offset")
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the data_offsets of {name} are inconsistent")
        data = bytearray(file.read(end - begin))
        if len(data) != end - begin:
            raise ValueError(f"truncated within {name}")
        tensors[name] = (
            torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        ).reshape(shape)
        position = end
    if 8 + header_size + position != size:
        raise ValueError("extra bytes after the last tensor")
    return tensors


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("duplicate names in the header")
    return result
