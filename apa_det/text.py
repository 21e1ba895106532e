"""Text from files, made safe for terminals, logs, file names and spreadsheets."""

import csv
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TextIO

import numpy as np

_DEVICES = ("CON", "PRN", "AUX", "NUL", *(f"{d}{i}" for d in ("COM", "LPT") for i in range(1, 10)))
_RESERVED = frozenset(_DEVICES)  # names of Windows, with any extension
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
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


def has_control(text: str) -> bool:
    """Return whether text has control characters, or ones that change the direction of text."""
    return _CONTROL.search(text) is not None


def file_name(text: str, max_bytes: int = 200) -> str:
    """Return text as the name of a file on any system: without folders or control characters.

    What cannot be in a name becomes "_". The start of a longer name is cut.
    """
    name = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in text)
    name = name.encode(errors="replace")[-max_bytes:].decode(errors="ignore").strip(" ") or "_"
    reserved = name.partition(".")[0].upper() in _RESERVED or not name.strip(".")
    return f"_{name}" if reserved else name


def listed(names: Iterable[object], max_names: int = 5) -> str:
    """Return names in quotes, each :func:`printable`, the first ones and the number of the rest."""
    names = [*names]
    rest = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(f"'{printable(name)}'" for name in names[:max_names]) + rest


def format_number(value: float, digits: int = 1, sign: str = "") -> str:
    """Format a number; "–" for NaN.

    With ``sign="+"``, positive numbers get a sign too, and so does 0, never "-0.0".
    """
    if math.isnan(value):
        return "–"
    return f"{round(value, digits) + 0.0 if sign else value:{sign}.{digits}f}"


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
