"""Reading and writing JSON files."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detectron2.utils.file_io import PathManager

from ..errors import MissingFileError, UserError


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
    Read a JSON file.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file is not valid JSON; the message gives the position, and says if the file
            is cut off.
    """
    path = local_path(json_file)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = is_cut_off(text.rstrip(), error)
        what = "is cut off: the JSON ends too early" if cut_off else "is not valid JSON"
        raise UserError(
            f"{json_file} {what} ({error.msg}, line {error.lineno} column {error.colno}, "
            f"{len(text):,} characters in total). Download or write it again."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{json_file} is not a JSON text file (byte {error.start:,} is not UTF-8). "
            "If it is an archive, unpack it first."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {json_file}: {error.strerror or error}.") from error


def local_path(json_file: str | os.PathLike) -> str:
    """Return the local path of a JSON file.

    Raises:
        MissingFileError: the file does not exist, or is a folder.
    """
    path = PathManager.get_local_path(os.fspath(json_file))
    if not os.path.isfile(path):
        what = "is a folder, not a JSON file" if os.path.isdir(path) else "does not exist"
        raise MissingFileError(f"{json_file} {what}. Check the path.")
    return path


def is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Return True if the parser failed at the end of the text, or in a token that reaches it."""
    rest = text[error.pos :]
    words = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
    return (
        any(word.startswith(rest) for word in words)
        or rest.lower() in (".", "e", "e-", "e+")  # of a number
        or (len(rest) < 6 and "escape" in error.msg)
        or error.msg.startswith("Unterminated string")
    )


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError in the body into a UserError that names the path being written."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_json(content, json_file: str | os.PathLike) -> None:
    """Write a JSON file atomically. Missing folders are created.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(json_file):
        os.makedirs(os.path.dirname(os.path.abspath(json_file)), exist_ok=True)
        partial = f"{json_file}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            file.write(json.dumps(content))
        os.replace(partial, json_file)


@contextmanager
def json_list(json_file: str | os.PathLike) -> Iterator[Callable[[dict], None]]:
    """Yield a function that appends a record to the JSON list in a file.

    The file is complete when the context exits. After an error it is unchanged.

    Raises:
        UserError: the file cannot be written.
    """
    partial = f"{json_file}.partial"
    with writing(json_file):
        with PathManager.open(partial, "w") as file:
            separator = "["

            def write(record: dict) -> None:
                nonlocal separator
                file.write(separator + json.dumps(record))
                separator = ",\n"

            yield write
            file.write("]\n" if separator != "[" else "[]\n")
        if PathManager.isfile(os.fspath(json_file)):
            PathManager.rm(os.fspath(json_file))  # PathManager.mv does not overwrite
        PathManager.mv(partial, os.fspath(json_file))
