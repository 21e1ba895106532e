"""Reading and writing JSON files."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detectron2.utils.file_io import PathManager

__all__ = ["gc_paused", "is_cut_off", "json_list", "read_json", "write_json"]


@contextmanager
def gc_paused():
    """While millions of records are made, garbage collection would look at all of them in vain."""
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
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; the message says where, or that it is cut off.
    """
    path = PathManager.get_local_path(os.fspath(json_file))
    if not os.path.isfile(path):
        what = "is a folder, not a JSON file" if os.path.isdir(path) else "does not exist"
        raise FileNotFoundError(f"{json_file} {what}: check the path of the annotations")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut_off = is_cut_off(text.rstrip(), error)
        what = "is cut off: the JSON ends too early" if cut_off else "is not valid JSON"
        raise ValueError(
            f"{json_file} {what} ({error.msg}, line {error.lineno} column {error.colno}, "
            f"{len(text):,} characters in all). Download or write it again."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{json_file} is not a JSON text file (byte {error.start:,} is not UTF-8): "
            "if it is an archive, unpack it first."
        ) from error


def is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the parser failed at the end of the text, or at something that goes on to there."""
    rest = text[error.pos :]
    words = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
    return (
        any(word.startswith(rest) for word in words)
        or rest.lower() in (".", "e", "e-", "e+")  # of a number
        or (len(rest) < 6 and "escape" in error.msg)
        or error.msg.startswith("Unterminated string")
    )


def write_json(content, json_file: str | os.PathLike) -> None:
    """Write a JSON file whole or not at all, into a folder that is made where it is missing."""
    os.makedirs(os.path.dirname(os.path.abspath(json_file)), exist_ok=True)
    partial = f"{json_file}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(content))
    os.replace(partial, json_file)


@contextmanager
def json_list(json_file: str | os.PathLike) -> Iterator[Callable[[dict], None]]:
    """Within, what is called with records writes them into a JSON list, one by one.

    At the end, the file is there whole; after an error it is as it was before.
    """
    partial = f"{json_file}.partial"
    with PathManager.open(partial, "w") as file:
        separator = "["

        def write(record: dict) -> None:
            nonlocal separator
            file.write(separator + json.dumps(record))
            separator = ",\n"

        yield write
        file.write("]\n" if separator != "[" else "[]\n")
    if PathManager.isfile(os.fspath(json_file)):
        PathManager.rm(os.fspath(json_file))  # mv writes nothing over
    PathManager.mv(partial, os.fspath(json_file))
