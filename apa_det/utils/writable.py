"""Check where results will be written to before the work starts."""

import os
import tempfile
from pathlib import Path

from ..errors import UserError


def require_writable_file(path: str, suffix: str, name: str = "--output") -> None:
    """Raise a UserError unless a file can be written; its folder may be missing.

    Args:
        path: the file.
        suffix: what it must end with, e.g. ".json".
        name: the flag or config key that the path comes from, for the message.
    """
    if not path.endswith(suffix):
        raise UserError(f"{name} must name a {suffix} file, got {path}.")
    if os.path.isdir(path):
        raise UserError(f"{name} must name a file, but {path} is a folder.")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise UserError(f"{name} is {path}, which is not writable.")
    require_writable_folder(os.path.dirname(path) or ".", name)


def require_writable_folder(path: str, name: str = "--output") -> None:
    """Raise a UserError unless files can be written into a folder, or it can be made.

    URLs are not checked.
    """
    if "://" in path:
        return
    folder = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
    if not folder.is_dir():
        raise UserError(f"{name} names the folder {path}, but {folder} is a file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{name} names the folder {path}, but {folder} is not writable: {error.strerror}."
        ) from error
