"""Limits on what a file may expand to when it is read."""

import numpy as np
from torch import Tensor

# Bytes of memory that a file may fill: a multiple of its size, as the objects of checkpoints and
# predictions take up to 48 times the bytes of their opcodes; and some more.
_FACTOR = 48
_ALLOWANCE = 64 * 2**20
_NESTED_FILE = 6000  # bytes to read one
_MAX_LEVELS = 64  # of containers within containers
FAR_MORE = "it expands to far more data than the file holds"
MAX_DIMS = 64  # of a tensor, as in NumPy

_CONTAINERS = (dict, list, tuple, set)
_TEXTS = (str, bytes, bytearray)


class Budget:
    """The memory that the objects in a file may take, in proportion to the size of the file.

    Without it, a short file can refer to one object so often that reading or using it never ends.

    Attributes:
        left: bytes that are left.
        nested: bytes that are left for files within the file.
    """

    def __init__(self, size: int):
        """Args: size: bytes of the file."""
        self._total = self.left = _ALLOWANCE + _FACTOR * size
        self.nested = 2 * size

    def spend(self, num_bytes: int) -> None:
        """Subtract bytes.

        Raises:
            ValueError: fewer are left.
        """
        self.left -= num_bytes
        if self.left < 0:
            raise ValueError(FAR_MORE)

    def spend_nested(self, size: int) -> None:
        """Subtract the reading of a file within the file.

        Raises:
            ValueError: too little is left.
        """
        self.nested -= size
        self.spend(_NESTED_FILE if self.nested >= 0 else self.left + 1)

    def check_expanded(self, value: object) -> None:
        """Raise a ValueError if a deep copy without sharing would exceed the budget of the file."""
        if expanded_size(value) > self._total:
            raise ValueError(FAR_MORE)


def shallow_size(value: object) -> int:
    """Estimate the bytes of a copy of a string, an array, or a container without its items."""
    kind = type(value)
    if kind in _TEXTS:
        return len(value)
    if kind in _CONTAINERS:
        return 64 + 16 * len(value)
    return value.nbytes if kind in (Tensor, np.ndarray) else 0


def expanded_size(value: object) -> int:
    """Estimate the bytes of a deep copy of plain data that copies shared objects every time.

    Raises:
        ValueError: the data contains itself, or has more than 64 levels.
    """
    return _expanded(value, 0, {})[0]


def _expanded(value: object, level: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the size, and the number of levels below the value."""
    size, height = known.get(id(value), (None, 0))
    if level + height > _MAX_LEVELS:
        raise ValueError("its data is nested too deeply, or contains itself")
    if size is not None:
        return size, height
    size = shallow_size(value)
    kind = type(value)
    if kind in _CONTAINERS:
        for item in value.values() if kind is dict else value:
            if type(item) in _CONTAINERS:
                item_size, item_height = _expanded(item, level + 1, known) if item else (64, 0)
                size += item_size
                height = max(height, item_height + 1)
            elif type(item) in _SIZED:
                size += shallow_size(item)
        if height or len(value) > 8:  # a small leaf is as fast to measure again
            known[id(value)] = size, height
    return size, height


_SIZED = frozenset((*_TEXTS, Tensor))
