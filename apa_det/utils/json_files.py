"""Reading and writing JSON files."""

import codecs
import gc
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from gzip import BadGzipFile, GzipFile
from io import BufferedReader, RawIOBase, TextIOWrapper
from typing import BinaryIO, TextIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from detectron2.utils.file_io import PathManager

from ..errors import MissingFileError, UserError
from ..text import printable
from .atomic_files import make_folder_of, open_atomic
from .progress import heartbeat

JSON_SUFFIXES = (".json", ".json.gz", ".json.zip")
_GZIP = b"\x1f\x8b"
CORRUPT = (BadGzipFile, BadZipFile, NotImplementedError, zlib.error)  # of archives
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second is an empty archive
_LARGE_FILE = 10 * 2**20  # bytes; reading takes seconds
_MANY_RECORDS = 10_000  # writing takes seconds
_MAX_RATIO = 50  # of the size of a text to that of its archive; real files have 3 to 20
_MAX_UNCHECKED = 100 * 2**20  # bytes of text of any archive


@contextmanager
def gc_paused():
    """Pause garbage collection: its passes are pure overhead while many records are built."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@gc_paused()
def read_json(json_file: str | os.PathLike):
    """
    Read a JSON file, which may be gzipped, in a zip archive, and start with a byte-order mark.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not valid JSON; the message gives the position, and says if the file
            is cut off.
    """
    name = os.path.basename(json_file)
    is_large = os.path.getsize(local_path(json_file)) > _LARGE_FILE
    with heartbeat(f"Reading {name}") if is_large else nullcontext():
        return _read_json(json_file)


def _read_json(json_file: str | os.PathLike):
    with open_json(json_file) as (file, _):
        text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = is_cut_off(text.rstrip(), error)
        what = "is cut off: the JSON ends too early" if cut_off else "is not valid JSON"
        where = f"line {error.lineno} column {error.colno}, {len(text):,} characters in total"
        raise UserError(
            f"{json_file} {what} ({error.msg}, {where}). Download or write it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{json_file} is not valid JSON ({invalid_reason(error)}). Download or write it again."
        ) from error


@contextmanager
def open_json(json_file: str | os.PathLike) -> Iterator[tuple[TextIO, BinaryIO]]:
    """Open a JSON file as text: plain, gzipped, or the only .json file in a zip archive.

    The format is detected by content, not by file name. A byte-order mark is skipped.

    Yields:
        The text, and the file on disk, whose position is the progress.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read, or is an archive that expands to far more than JSON
            does; also later, while the context is open.
    """
    path = local_path(json_file)
    with reading_errors(json_file), open(path, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        file = raw
        if start.startswith(_GZIP) or start in _ZIP:
            gzip = start.startswith(_GZIP)
            packed = GzipFile(fileobj=raw) if gzip else _only_member(ZipFile(raw), json_file)
            limit = max(_MAX_UNCHECKED, _MAX_RATIO * os.fstat(raw.fileno()).st_size)
            file = BufferedReader(_Limited(packed, limit, json_file))
        utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        yield TextIOWrapper(file, encoding="utf-16" if utf16 else "utf-8-sig"), raw


class _Limited(RawIOBase):
    """The text in an archive, of which no more than a limit can be read."""

    def __init__(self, file: BinaryIO, limit: int, name: str | os.PathLike):
        self._file, self._limit, self._left, self._name = file, limit, limit, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        size = self._file.readinto(buffer)
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self._name} expands to more than {self._limit / 1e6:,.0f} MB, far more than "
                "compressed JSON does. Get it again; if it is right, unpack it and give the .json "
                "file."
            )
        return size


def _only_member(archive: ZipFile, json_file: str | os.PathLike) -> BinaryIO:
    members = [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith(".json") and not member.filename.startswith("__MACOSX/")
    ]
    if len(members) != 1:
        names = f" ({', '.join(printable(m.filename, 40) for m in members[:3])})" if members else ""
        raise UserError(
            f"{json_file} is a zip archive of {len(members)} .json files{names}; it must have one. "
            "Unpack it and give the .json file."
        )
    if members[0].flag_bits & 1 or members[0].compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise UserError(
            f"{json_file} is an encrypted zip archive, or of an unusual compression. Unpack it and "
            "give the .json file."
        )
    return archive.open(members[0])


@contextmanager
def reading_errors(
    json_file: str | os.PathLike, progress: Callable[[], str] = str
) -> Iterator[None]:
    """Turn the errors of reading a JSON file in the body into UserErrors.

    Args:
        json_file: the file, for the message.
        progress: returns how far reading got, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except (EOFError, *CORRUPT, UnicodeDecodeError, OSError) as error:
        again = "Download or write it again."
        if isinstance(error, EOFError):
            message = f"is cut off: the compressed data end too early{progress()}. {again}"
        elif isinstance(error, CORRUPT):
            message = f"has corrupt gzip or zip data ({error}){progress()}. {again}"
        elif not isinstance(error, UnicodeDecodeError):
            raise UserError(f"Cannot read {json_file}: {error.strerror or error}.") from error
        elif error.reason in ("unexpected end of data", "truncated data"):
            message = f"is cut off: in the middle of a character{progress()}. {again}"
        else:
            message = f"is not a JSON text file{progress()}: it is not UTF-8. {again}"
        raise UserError(f"{json_file} {message}") from error


def invalid_reason(error: ValueError | RecursionError) -> str:
    """Return the reason of an error of the JSON parser."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def local_path(json_file: str | os.PathLike) -> str:
    """Return the local path of a JSON file.

    Raises:
        MissingFileError: the file does not exist, or is a folder.
    """
    try:
        path = PathManager.get_local_path(os.fspath(json_file))
    except OSError as error:
        raise UserError(f"Cannot read {json_file}: {error.strerror or error}.") from error
    if not os.path.isfile(path):
        what = "is a folder, not a JSON file" if os.path.isdir(path) else "does not exist"
        raise MissingFileError(f"{json_file} {what}. Check the path.")
    return path


def is_cut_off(text: str, error: ValueError | RecursionError) -> bool:
    """Return True if the parser failed at the end of the text, or in a token that reaches it."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = text[error.pos :]
    words = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
    return (
        any(word.startswith(rest) for word in words)
        or rest.lower() in (".", "e", "e-", "e+")  # of a number
        or (len(rest) < 6 and "escape" in error.msg)
        or error.msg.startswith("Unterminated string")
    )


def write_json(content, json_file: str | os.PathLike) -> None:
    """Write a JSON file atomically. Missing folders are created.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder_of(json_file)
    name, tables = (
        os.path.basename(json_file),
        content.values() if isinstance(content, dict) else (),
    )
    is_large = sum(len(table) for table in tables if isinstance(table, list)) > _MANY_RECORDS
    with (
        heartbeat(f"Writing {name}") if is_large else nullcontext(),
        open_atomic(json_file) as file,
    ):
        file.write(json.dumps(content))


@contextmanager
def json_list(json_file: str | os.PathLike) -> Iterator[Callable[[dict], None]]:
    """Yield a function that appends a record to the JSON list in a file.

    The file is complete when the context exits. After an error it is unchanged. A missing folder is
    created.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder_of(json_file)
    with open_atomic(json_file) as file:
        separator = "["

        def write(record: dict) -> None:
            nonlocal separator
            file.write(separator + json.dumps(record))
            separator = ",\n"

        yield write
        file.write("]\n" if separator != "[" else "[]\n")
