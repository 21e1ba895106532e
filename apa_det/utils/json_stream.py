"""Reading a JSON list that does not fit into memory, a few thousand records at a time."""

import json
import os
import re
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm

from ..errors import UserError
from .json_files import gc_paused, invalid_reason, is_cut_off, open_json, reading_errors

_BLOCK = 1 << 23  # characters
_TAIL = 1 << 16  # characters to search for the end of a record
_MAX_RECORD = 1 << 26  # characters
_NUMBER_END = 2  # characters after a number that may still belong to it, e.g. "e-" of 1e-5
_BETWEEN = re.compile(r"\}\s*,\s*\{")
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
    with (
        open_json(json_file) as (file, raw),
        tqdm(
            desc=f"reading {os.path.basename(json_file)}",
            total=os.fstat(raw.fileno()).st_size,
            unit="B",
            unit_scale=True,
            delay=2,
            leave=False,
        ) as progress,
    ):
        items = _Items(file, str(json_file), block)
        while (records := items.next_records()) is not None:
            progress.update(raw.tell() - progress.n)
            yield records


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
