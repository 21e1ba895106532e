"""Locks of folders, which end with their process."""

import fcntl
import logging
import os
import socket
from contextlib import suppress

from ..errors import UserError
from .atomic_files import writing

logger = logging.getLogger(__name__)

_FILE = ".lock"
_held: dict[str, int] = {}  # descriptors of this process, by the path of the file


def lock_folder(folder: str, key: str) -> bool:
    """Lock a folder for this process, until :func:`unlock_folder` or the end of the process.

    Also on network file systems that support ``flock``; elsewhere a warning is logged. A URL is
    not locked.

    Args:
        folder: created if missing.
        key: the config key of the folder, for the message.

    Returns:
        False if this process has locked it before.

    Raises:
        UserError: another process has locked it, or its lock file cannot be written.
    """
    if not folder or "://" in folder:
        return False
    path = os.path.realpath(os.path.join(folder, _FILE))
    if path in _held and _is_open_file(_held[path], path):
        return False
    with writing(path):
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(
            f"{key} is {folder}, in which another training runs{owner and f' ({owner})'}: wait for "
            f"its end, or set {key} to another folder."
        ) from None
    except OSError as error:
        logger.warning(
            "Cannot lock %s (%s): do not start a second training in it.", folder, error.strerror
        )
    with suppress(OSError):  # a full disk: the lock holds without its text
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[path] = descriptor
    return True


def unlock_folder(folder: str) -> None:
    """End the lock of this process on a folder, if it has one."""
    path = os.path.realpath(os.path.join(folder, _FILE))
    if path in _held:
        os.close(_held.pop(path))


def is_locked(folder: str) -> bool:
    """Return whether another process has locked a folder; False where locks do not work."""
    path = os.path.realpath(os.path.join(folder, _FILE))
    if path in _held or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _is_open_file(descriptor: int, path: str) -> bool:
    """Return whether a descriptor is of the file that now has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _close_in_child() -> None:
    """Leave the locks to the parent: a data worker may outlive it for some seconds."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
