"""Check where a command writes to before it starts to work."""

import os
import tempfile
from pathlib import Path

__all__ = ["require_output_file", "require_output_folder"]


def require_output_file(path: str, suffix: str, flag: str = "--output") -> None:
    """Raise a UserError unless a file with this suffix can be written.

    Its folder may be missing.
    """
    from apa_det.errors import UserError

    if not path.endswith(suffix):
        raise UserError(f"{flag} must name a {suffix} file, got {path}.")
    if os.path.isdir(path):
        raise UserError(f"{flag} must name a file, but {path} is a folder.")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise UserError(f"{flag} is {path}, which is not writable.")
    require_output_folder(os.path.dirname(path) or ".", flag)


def require_output_folder(path: str, flag: str = "--output") -> None:
    """Raise a UserError unless files can be written into a folder, or it can be made."""
    from apa_det.errors import UserError

    folder = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
    if not folder.is_dir():
        raise UserError(f"{flag} names the folder {path}, but {folder} is a file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} names the folder {path}, but {folder} is not writable: {error.strerror}."
        ) from error
