"""Write files that are complete or unchanged, whenever the process ends."""

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from detectron2.utils.file_io import PathManager

from ..errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of a file system without it


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError in the body into a UserError that names the path being written."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        advice = " Make room for it first." if error.errno in _NO_SPACE else ""
        raise UserError(f"Cannot write {path}: {error.strerror or error}.{advice}") from error


def make_folder_of(path: str | os.PathLike) -> None:
    """Create the folder of a file, which may be a URL of PathManager.

    Raises:
        UserError: it cannot be created.
    """
    path = os.fspath(path)
    with writing(path):
        PathManager.mkdirs(path[: path.rfind("/") + 1] or ".")


@contextmanager
def open_atomic(path: str | os.PathLike, mode: str = "w", newline: str | None = None) -> Iterator:
    """Open a file for writing; when the context exits, it replaces the file of this name.

    It is written under another name beside it, synced to the disk, and renamed. So the file has its
    old or its new content at every moment, and after an error in the body, or if the disk is full,
    it is unchanged and nothing else is left. A URL of PathManager is written when the content is
    complete. Devices and pipes are written directly.

    Args:
        path: the file; its folder must exist.
        mode: "w" for text (UTF-8), "wb" for bytes.
        newline: as for :func:`open`.

    Raises:
        UserError: the file cannot be written.
    """
    path = os.fspath(path)
    target = path if "://" in path else os.path.realpath(path)
    with writing(path):
        partial = _partial(target)
        raw = _File(partial, "w")
    try:
        file: IO = io.BufferedWriter(raw)
        if "b" not in mode:
            file = io.TextIOWrapper(file, encoding="utf-8", newline=newline)
        yield file
        with writing(path):
            file.flush()
            _sync(raw.fileno())
            file.close()
            _replace(partial, target)
    except BaseException:
        with suppress(OSError):
            file.close()
        if partial != target:
            with suppress(OSError):
                os.remove(partial)
        if raw.error is not None:  # torch.save replaces it by a RuntimeError of its own
            with writing(path):
                raise raw.error from None
        raise


class _File(io.FileIO):
    """A file that keeps the error of a failed write."""

    error: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _partial(target: str) -> str:
    """Return the name of the file to write in place of the target."""
    if "://" in target:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        return name
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    is_special = os.path.exists(target) and not os.path.isfile(target)
    return target if is_special else f"{target}.partial"


def _replace(partial: str, target: str) -> None:
    if "://" in target:
        with open(partial, "rb") as source, PathManager.open(target, "wb") as file:
            shutil.copyfileobj(source, file)
        os.remove(partial)
    elif partial != target:
        os.replace(partial, target)
        with suppress(OSError):  # some systems cannot open a folder
            folder = os.open(os.path.dirname(target), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
