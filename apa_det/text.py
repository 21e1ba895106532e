"""Text from files, made safe for terminals, logs, file names and spreadsheets."""

import csv
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TextIO

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object, max_length: int = 80) -> str:
    r"""Return text on one line, with every character that does not print escaped, e.g. ``\x1b``.

    Args:
        text: any object; its ``str`` is used.
        max_length: longer text is cut, and ends with "...".
    """
    text = str(text)
    start = text[: max_length + 1]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in start)
    if len(text) <= max_length and len(escaped) <= max_length:
        return escaped
    return escaped[: max(0, max_length - 3)] + "..."


def write_csv(
    file: TextIO, columns: Sequence[str], rows: Iterable[Iterable], *, lineterminator: str = "\r\n"
) -> None:
    """Write a CSV table. Text that a spreadsheet would run as a formula gets a leading quote.

    Args:
        file: opened with ``newline=""``.
        columns: the header.
        rows: the values of each row.
        lineterminator: as of ``csv.writer``.
    """
    writer = csv.writer(file, lineterminator=lineterminator)
    for row in chain([columns], rows):
        writer.writerow(map(_csv_cell, row))


def _csv_cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
