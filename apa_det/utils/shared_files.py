"""Files without a name: processes of a machine share them, and they vanish with the last one.

They are in memory that does not count as /dev/shm, or else in the folder for temporary files.
Nothing is left to clean up, not even after a kill.
"""

import hashlib
import logging
import mmap
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import BinaryIO

import torch.distributed as dist

from ..errors import UserError

logger = logging.getLogger(__name__)

_CAN_SHARE = os.path.exists("/proc/self/fd")  # on Linux
_TIMEOUT = timedelta(hours=2)  # for the process that writes a file
_published: dict[str, BinaryIO] = {}  # files that other processes may still want to open


def new_file() -> BinaryIO:
    """Return an empty file for reading and writing, without a name.

    Raises:
        UserError: the folder for temporary files is not writable.
    """
    if not _CAN_SHARE:
        return BytesIO()
    try:
        return open(os.memfd_create("apa_det"), "w+b")
    except (AttributeError, OSError):  # built for an old system; not allowed
        pass
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise UserError(
            f"Cannot write a temporary file: {error.strerror or error}. Set the environment "
            "variable TMPDIR to another folder."
        ) from error


def read_buffer(file: BinaryIO) -> bytes | mmap.mmap:
    """Return the whole content of a file of :func:`new_file`, mapped into memory."""
    if isinstance(file, BytesIO):
        return file.getvalue()
    file.flush()
    return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def share(file: BinaryIO) -> bytes | tuple[str, int, int]:
    """Return what :func:`open_shared` needs in another process of this machine.

    It can be opened as long as this process keeps the file open. Where processes cannot share
    files, it is the content.
    """
    if isinstance(file, BytesIO):
        return file.getvalue()
    file.flush()
    status = os.fstat(file.fileno())
    return f"/proc/{os.getpid()}/fd/{file.fileno()}", status.st_dev, status.st_ino


def open_shared(shared: bytes | tuple[str, int, int]) -> BinaryIO:
    """Open the file of another process.

    Raises:
        OSError: the process has closed the file, or may not be looked into.
    """
    if isinstance(shared, bytes):
        return BytesIO(shared)
    path, *expected = shared
    file = open(path, "rb")
    status = os.fstat(file.fileno())
    if [status.st_dev, status.st_ino] != expected:
        file.close()
        raise FileNotFoundError(f"{path} is another file now")
    return file


def once_per_machine(key: str, write: Callable[[], BinaryIO]) -> BinaryIO:
    """Return the file of ``write()``, which only one process per machine of a job calls.

    It is the first process that asks for the key; others that ask wait for it. Not all processes
    need to ask. If it fails, the others call ``write``, too.

    Args:
        key: what the file contains.
        write: returns a new file of :func:`new_file`.
    """
    store, machine = _store(), _machine()
    if store is None or machine is None:
        return write()
    key = f"apa_det/{machine}/{hashlib.sha256(key.encode()).hexdigest()}"
    if key in _published:
        return _published[key]
    if store.add(f"{key}/claims", 1) == 1:
        address = ""
        try:
            file = write()
            path, device, inode = share(file)
            address = f"{path}:{device}:{inode}"
            _published[key] = file
        finally:
            store.set(f"{key}/address", address)
        return file
    store.wait([f"{key}/address"], _TIMEOUT)
    address = store.get(f"{key}/address").decode()
    if address:
        path, device, inode = address.split(":")
        try:
            file = open_shared((path, int(device), int(inode)))
        except OSError as error:
            logger.warning("Cannot share memory with another process: %s", error)
        else:
            _published[key] = file
            return file
    return write()


def _store() -> dist.Store | None:
    """Return the key-value store of the processes of a job; None if there is only one process."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.distributed_c10d._get_default_store()


def _machine() -> str | None:
    """Return what the processes have in common that can open each other's files; None: nothing."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}-{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
