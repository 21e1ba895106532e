"""Reading a JSON list that does not fit into memory, a few thousand records at a time."""

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from ..errors import UserError
from .json_files import gc_paused, invalid_reason, is_cut_off, open_json, reading_errors
from .progress import Progress

_BLOCK = 1 << 23  # characters
_TABLE_BLOCK = 1 << 20
_TAIL = 1 << 16  # characters to search for the end of a record
_MAX_RECORD = 1 << 26  # characters
_NUMBER_END = 2  # characters after a number that may still belong to it, e.g. "e-" of 1e-5
_BETWEEN = re.compile(r"\}\s*,\s*\{")
_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"\s*([,\]]?)\s*")
_DECODER = json.JSONDecoder()


def read_json_list(json_file: str | os.PathLike, block: int = _BLOCK) -> Iterator[list]:
    """
    Yield the records of a JSON list in chunks.

    Neither the whole text nor all records are in memory at once.

    Args:
        json_file: path of the file, see :func:`apa_det.utils.json_files.open_json`.
        block: number of characters to read at a time.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not a JSON list, is corrupt, or is cut off; the message names the
            first record that cannot be read.
    """
    with _opened(json_file) as (file, progress):
        items = _Items(file, str(json_file), block)
        while (records := items.next_records()) is not None:
            progress()
            yield records


class UnexpectedJSON(ValueError):
    """Text that :func:`read_json_tables` leaves to :func:`apa_det.utils.json_files.read_json`."""


def read_json_tables(
    json_file: str | os.PathLike,
    tables: Collection[str],
    edit: Callable[[str], str] = str,
    block: int = _TABLE_BLOCK,
) -> Iterator[tuple[str, object]]:
    """
    Yield the keys and values of a JSON object, and the lists of some keys in chunks.

    Neither the whole text nor all records of these lists are in memory at once.

    Args:
        json_file: path of the file, see :func:`apa_det.utils.json_files.open_json`.
        tables: keys whose lists are yielded in several parts, of which the first is empty.
        edit: changes the text of records before they are decoded. If a part of a list has not been
            edited, it is called again and its result is not used.
        block: number of characters to read at a time.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read.
        UnexpectedJSON: the file is no JSON object, is invalid, repeats a key, or has a record of
            more than 64 MB.
    """
    with _opened(json_file) as (file, progress):
        for item in _Tables(file, str(json_file), edit, block).items(tables):
            progress()
            yield item


@contextmanager
def _opened(json_file: str | os.PathLike) -> Iterator[tuple[TextIO, Callable[[], None]]]:
    """Open a JSON file. Yields the text, and a function that shows the progress."""
    with (
        open_json(json_file) as (file, raw),
        Progress(
            f"Reading {os.path.basename(json_file)}", os.fstat(raw.fileno()).st_size, "B"
        ) as progress,
    ):
        yield file, lambda: progress.update(raw.tell() - progress.done)


class _Tables:
    """Incremental parser of the object in a text file."""

    def __init__(self, file: TextIO, name: str, edit: Callable[[str], str], block: int):
        self._file, self._name, self._edit, self._block = file, name, edit, block
        self._text, self._at = "", 0
        self._ended = False

    def items(self, tables: Collection[str]) -> Iterator[tuple[str, object]]:
        self._take("{")
        keys: set[str] = set()
        while True:
            key = self._value()
            if type(key) is not str or key in keys:
                self._fail(f"the key {key!r}")
            keys.add(key)
            self._take(":")
            if key in tables and self._next() == "[":
                self._at += 1
                yield key, []
                ended = self._next() == "]"
                self._at += ended
                while not ended:
                    records, ended = self._records()
                    if records:
                        yield key, records
            else:
                yield key, self._value()
            if self._next() == "}":
                break
            self._take(",")
        self._at += 1
        if self._next():
            self._fail("more text after its end")

    def _fail(self, what: str) -> NoReturn:
        raise UnexpectedJSON(f"{self._name} has {what}.")

    def _read(self) -> bool:
        """Read more text; return False at the end of the file."""
        with reading_errors(self._name):
            text = self._file.read(max(self._block, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + text, 0
        self._ended = not text
        return not self._ended

    def _next(self) -> str:
        """Return the next character, which is no white space; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def _take(self, character: str) -> None:
        if self._next() != character:
            self._fail(f"no {character}")
        self._at += 1

    @gc_paused()
    def _value(self) -> object:
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                value, end = None, None
            if end is not None and (self._ended or end + _NUMBER_END < len(self._text)):
                self._at = end
                return value
            if not self._read() and end is None:
                self._fail("an invalid value")

    @gc_paused()
    def _records(self) -> tuple[list, bool]:
        """Decode the next records of a list; return them, and whether the list has ended."""
        if not self._ended and len(self._text) - self._at < self._block:
            self._read()
        text = self._text[self._at :]
        if not self._ended:  # up to the last "}, {", which is hopefully not inside a record
            cuts = list(_BETWEEN.finditer(text, max(0, len(text) - _TAIL)))
            head = text[: cuts[-1].start() + 1] + "]" if cuts else ""
        else:
            cuts, head = [], text
        for read in (self._edit, str):  # the end of the list is only found in the text as it is
            edited = read(head)
            try:
                records, end = _DECODER.raw_decode("[" + edited)
            except (ValueError, RecursionError):
                return self._singly()
            if not records:
                self._fail("a comma at the end of a list")
            if cuts and end > len(edited):
                self._at += cuts[-1].end() - 1
                return records, False
        self._at += end - 1
        return records, True

    def _singly(self) -> tuple[list, bool]:
        """Decode the records one by one, up to the end of the text or of the list."""
        records = []
        self._next()
        while self._at < len(self._text):
            try:
                record, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                break
            separator = _SEPARATOR.match(self._text, end)
            if not separator[1]:
                break
            records.append(record)
            self._at = separator.end()
            if separator[1] == "]":
                return records, True
        if not records and (len(self._text) - self._at > _MAX_RECORD or not self._read()):
            self._fail("an invalid record")
        return records, False


class _Items:
    """Incremental parser of the list in a text file."""

    def __init__(self, file: TextIO, name: str, block: int):
        self._file, self._name, self._block = file, name, block
        self._count = 0
        self._ended = False
        self._text = self._read().lstrip()
        if not self._text.startswith("["):
            what = "a JSON object" if self._text.startswith("{") else "text that is not JSON"
            raise UserError(
                f"{name} contains {what if self._text else 'nothing'}; expected a JSON list of "
                "detections [{...}, {...}, ...], as in COCO and LVIS result files."
            )
        self._text = self._text[1:]

    def _read(self) -> str:
        with reading_errors(self._name, self._progress):
            text = self._file.read(self._block)
        self._ended = not text
        return text

    def _progress(self) -> str:
        return f", after about {self._count:,} complete records"

    @gc_paused()
    def next_records(self) -> list | None:
        """Return the next records, or None at the end of the list."""
        records = []
        while self._text is not None and not records:
            if not self._ended:
                self._text += self._read()
            records = self._take_many()
            if records is None:
                records = self._take_singly()
            if not records and self._text is not None and len(self._text) > _MAX_RECORD:
                raise self._invalid(0, f"it has more than {_MAX_RECORD:,} characters")
            self._count += len(records)
        return records or None

    def _take_many(self) -> list | None:
        """Decode all before the last "}, {" at once; return None if it is inside a record."""
        head, rest = self._text, None
        if not self._ended:
            cuts = list(_BETWEEN.finditer(self._text, max(0, len(self._text) - _TAIL)))
            if not cuts:
                return None
            head, rest = self._text[: cuts[-1].start() + 1] + "]", self._text[cuts[-1].end() - 1 :]
        try:
            records = json.loads("[" + head)
        except (ValueError, RecursionError):
            return None
        self._text = rest
        return records

    def _take_singly(self) -> list:
        """Decode the records one by one, up to the end of the text or of the list."""
        text = self._text
        at = len(text) - len(text.lstrip())
        records = []
        while at < len(text):
            if text[at] == "]" and not self._count and not records:  # an empty list
                end = at
            else:
                try:
                    record, end = _DECODER.raw_decode(text, at)
                except (ValueError, RecursionError) as error:
                    if is_cut_off(text.rstrip(), error):
                        break
                    raise self._invalid(len(records), invalid_reason(error)) from error
                records.append(record)
            separator = _SEPARATOR.match(text, end)
            if separator[1] == "]":
                if text[separator.end() :] or not self._ended and self._read().strip():
                    raise UserError(
                        f"{self._name} has more text after the end of its list. Write or copy it "
                        "again."
                    )
                self._text = None
                return records
            if separator[1] != ",":
                if len(text) - separator.end() > (0 if self._ended else _NUMBER_END):
                    raise self._invalid(len(records) - 1, "no comma after it")
                records.pop()  # it may continue in the next block
                break
            at = separator.end()
        self._text = text[at:]
        if self._ended:
            self._count += len(records)
            raise UserError(
                f"{self._name} is cut off: the JSON ends too early{self._progress()}. Download or "
                "write it again."
            )
        return records

    def _invalid(self, index: int, what: str) -> UserError:
        return UserError(
            f"{self._name} is not valid JSON at record {self._count + index} (counted from 0): "
            f"{what}. Write or copy it again."
        )
