"""What is wrong with a value of a record, and which record of many it is."""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..text import printable

T = TypeVar("T")


class Fault(ValueError):
    """A value that breaks the contract. The message is its key, the value and the remedy.

    Attributes:
        key: the key of the value.
    """

    def __init__(self, key: str, problem: str):
        super().__init__(f"{key} {problem}")
        self.key = key


def faults(
    records: Sequence, checks: Sequence[Callable[[Sequence], object]], block: int = 10_000
) -> Iterator[tuple[int, Fault]]:
    """Yield the index of each invalid record, with a fault for each check that it fails.

    Args:
        records: the records.
        checks: functions of any number of records that raise a :class:`Fault`.
        block: number of records to check at once.
    """
    for start in range(0, len(records), block):
        part = records[start : start + block]
        if not any(_fault(check, part) for check in checks):
            continue
        for index, record in enumerate(part, start):
            for check in checks:
                fault = _fault(check, [record])
                if fault:
                    yield index, fault


def convert(
    records: Sequence, convert_many: Callable[[Sequence], T], name: str, start: int = 0
) -> T:
    """Return ``convert_many(records)``, or name the first record that it does not accept.

    Args:
        records: the records.
        convert_many: function of any number of records that raises a :class:`Fault`.
        name: of the records, for the message.
        start: the index of the first record.

    Raises:
        UserError: a record is invalid.
    """
    try:
        return convert_many(records)
    except Fault:
        index, fault = next(faults(records, [convert_many]))
        raise UserError(f"{name} {start + index} (from 0): {fault}.") from fault


def _fault(check: Callable[[Sequence], object], records: Sequence) -> Fault | None:
    try:
        check(records)
    except Fault as fault:
        return fault
    return None


class _Repr(reprlib.Repr):
    def repr1(self, value, level: int) -> str:
        if isinstance(value, bool | float | np.number | np.bool_ | None):
            return str(value)
        if type(value) is int and value.bit_length() > 80:
            return f"an integer of {value.bit_length():,} bits"
        if type(value) in (str, bytes):
            return f"{value[:40]!r}" + "..." * (len(value) > 40)
        if type(value) in (int, list, tuple, dict):
            return super().repr1(value, level)
        return f"an object of type {type(value).__name__}"


def shown(value) -> str:
    """Return short text of any value for messages, on one line."""
    shortener = _Repr()
    shortener.maxlevel = 3
    return printable(shortener.repr(value), 120)


def column(records: Sequence[dict], key: str, remedy: str) -> list:
    """Return the values of a key that all records must have.

    Args:
        records: the records.
        key: the key.
        remedy: what to do if it is missing, for the message.
    """
    try:
        return [record[key] for record in records]
    except KeyError:
        raise Fault(key, f"is missing; {remedy}") from None
