"""What is wrong with a value of a record, and which record of many it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..errors import UserError

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
