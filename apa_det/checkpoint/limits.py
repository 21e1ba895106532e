"""Limits on what a file may expand to when it is read."""

import numpy as np
from torch import Tensor

# Bytes of memory that a file may fill: a multiple of its size, as the objects of checkpoints and
# predictions take up to 48 times the bytes of their opcodes; and some more. What takes long counts
# as more bytes than it fills, about 200 per microsecond, so that this limits the time as well.
_FACTOR = 48
_ALLOWANCE = 64 * 2**20
_NESTED_FILE = 6000  # bytes to read one
_MAX_LEVELS = 64  # of containers within containers
FAR_MORE = "it expands to far more data than the file holds"
MAX_DIMS = 64  # of a tensor, as in NumPy
TENSOR = 10_000  # bytes for a tensor beside its data: each is checked, copied and saved
MAX_NAME = 2000  # characters

_KEYS = (float, bool, type(None))
_CONTAINERS = frozenset((dict, list, tuple, set))
_TEXTS = frozenset((str, bytes, bytearray))
_SIZED = _CONTAINERS | _TEXTS | {Tensor}


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
        """Check that a copy without sharing would not exceed the budget of the file.

        Raises:
            ValueError: it would; or the value contains itself, or has more than 64 levels.
        """
        self._expand(value, self._total, 0)

    def _expand(self, value: object, left: int, level: int) -> int:
        """Return what the copy leaves of the bytes that are left."""
        if level > _MAX_LEVELS:
            raise ValueError("its data is nested too deeply, or contains itself")
        left -= shallow_size(value)
        if type(value) in _CONTAINERS:
            items = value.values() if type(value) is dict else value
            if not _SIZED.isdisjoint(map(type, items)):
                for item in items:
                    kind = type(item)
                    if kind in _CONTAINERS and item:
                        left = self._expand(item, left, level + 1)
                    elif kind in _SIZED:
                        left -= shallow_size(item)
        if left < 0:
            raise ValueError(FAR_MORE)
        return left


def shallow_size(value: object) -> int:
    """Estimate the bytes of a copy of a string, an array, or a container without its items."""
    kind = type(value)
    if kind in _TEXTS:
        return len(value)
    if kind in _CONTAINERS:
        return 80 + 16 * len(value)
    if kind is Tensor:
        return TENSOR + value.nbytes
    return value.nbytes if kind is np.ndarray else 0


def is_key(value: object) -> bool:
    """Return whether a value can be a key, whose hash is fast and unlike that of other keys.

    Raises:
        ValueError: it is a very long name.
    """
    kind = type(value)
    if kind is str or kind is bytes:
        if len(value) > MAX_NAME:
            raise ValueError(f"a name of {len(value)} characters")
        return True
    if kind is int:
        return -(2**60) < value < 2**60
    return kind in _KEYS
