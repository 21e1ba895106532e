"""Read checkpoint files as data: no code in a file is ever run."""

import io
import logging
import mmap
import sys
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import MissingFileError, UserError
from ..text import printable
from ..utils.json_files import gc_paused
from .constructors import Inert, Storage, storage_dtype
from .limits import Budget
from .safetensors import is_safetensors, read_safetensors
from .unpickler import RunsCodeError, unpickle

logger = logging.getLogger(__name__)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_SMALL = 2**26  # bytes; reading from a copy of a file is faster than from a memory map
_MAX_NESTED = 4  # files within a file


def load_checkpoint(path: str) -> dict:
    """Read a checkpoint: PyTorch's (either format), pickled arrays or safetensors.

    The format is detected from the contents. Objects that are neither plain data nor tensors are
    dropped, and their classes are logged.

    Args:
        path: a local file.

    Returns:
        The dict in the file, of tensors (on the CPU, without gradient; NumPy arrays become tensors)
        and of plain data, nested.

    Raises:
        MissingFileError: the file does not exist.
        UserError: the file cannot be read, is not a checkpoint, is damaged or truncated, or calls
            a function that could run a program.
    """
    checkpoint, inert = read_torch_file(path)
    if type(checkpoint) is not dict:
        kind = checkpoint.name if isinstance(checkpoint, Inert) else type(checkpoint).__name__
        kind = printable(kind)
        raise UserError(
            f"{path} contains an object of {kind} instead of a dict of tensors. Load it with the "
            "program that saved it, and save its state_dict()."
        )
    if inert:
        names = printable(", ".join(sorted(inert)), 1000)
        logger.info("%s: dropped objects of these classes: %s", path, names)
    return checkpoint


def read_torch_file(path: str, kind: str = "checkpoint") -> tuple[object, set[str]]:
    """Read a file as :func:`load_checkpoint` does, whatever object it contains.

    Args:
        path: a local file.
        kind: what the file should be, for errors.

    Returns:
        The object, and the names of the classes and functions whose objects were dropped. A dropped
        object is missing from a dict; elsewhere an :class:`Inert` replaces it.

    Raises:
        MissingFileError, UserError: see :func:`load_checkpoint`.
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        advice = " Download it, and name the local file." if "://" in path else ""
        raise MissingFileError(f"{kind.capitalize()} not found: {path}.{advice}") from None
    except OSError as error:
        raise UserError(f"Cannot read the {kind} {path}: {error.strerror}.") from error
    try:
        with file, gc_paused():
            return _read(file)
    except RunsCodeError as error:
        raise UserError(
            f"{path} would call {printable(error)} on unpickling, which no {kind} needs. Nothing "
            "was run: delete the file, and get another from a source that you trust."
        ) from None
    except Exception as error:  # damaged data can raise anything
        reason = printable((str(error) or type(error).__name__).partition("\n")[0], 200)
        raise UserError(
            f"{path} is not a {kind}, or is damaged ({reason}). Download or save it again."
        ) from error


def _read(file: BinaryIO, budget: Budget | None = None, level: int = 0) -> tuple[object, set[str]]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(9)
    file.seek(0)
    budget = budget or Budget(size)

    def load_bytes(data: bytes) -> object:
        if level == _MAX_NESTED:
            raise ValueError("files are nested too deeply in it")
        budget.spend_nested(len(data))
        return _read(io.BytesIO(data), budget, level + 1)[0]

    if start.startswith(b"PK\x03\x04"):
        return _read_zip(file, size, budget, load_bytes)
    if not isinstance(file, io.BytesIO):
        # In memory, a read beyond the end of the file allocates nothing.
        file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if size < _SMALL:
            file = io.BytesIO(file)
    if is_safetensors(start, size):
        return read_safetensors(file, size, budget), set()
    return _read_pickle(file, size, budget, load_bytes)


def _read_zip(
    file: BinaryIO, size: int, budget: Budget, load_bytes: Callable[[bytes], object]
) -> tuple[object, set[str]]:
    """Read PyTorch's format since 1.6: a pickle, and one record per storage."""
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, size)
        byteorder = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
        if byteorder not in (b"little", b"big"):
            raise ValueError("unknown byte order")
        swapped = byteorder.decode() != sys.byteorder
        contents = {}

        def load_storage(persistent_id: tuple) -> Storage:
            kind, storage_class, key, _, numel = persistent_id
            dtype = storage_dtype(storage_class)
            if kind != "storage" or not _is_name(key) or f"data/{key}" not in records:
                raise ValueError(f"storage {key} is missing")
            if key not in contents:
                data = bytearray(records[f"data/{key}"].file_size)
                with archive.open(records[f"data/{key}"]) as record:
                    record.readinto(data)
                contents[key] = _tensor(data)
                if swapped:
                    contents[key].untyped_storage().byteswap(dtype)
            if len(contents[key]) != numel * dtype.itemsize:
                raise ValueError(f"storage {key} has the wrong size")
            return Storage(contents[key], dtype)

        pickled = io.BytesIO(archive.read(records["data.pkl"]))
        return unpickle(pickled, budget, load_storage=load_storage, load_bytes=load_bytes)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the records of the archive by name, without the one folder of torch.save."""
    infos = archive.infolist()
    folder = infos[0].filename.partition("/")[0] + "/"
    records = {info.filename[len(folder) :]: info for info in infos}
    for info in infos:
        path = info.filename
        if not path.startswith(folder) or "\\" in path or {"", ".", ".."} & {*path.split("/")}:
            raise ValueError(f"unexpected zip record {path!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"compressed zip record {path!r}")
    if len(records) < len(infos):
        raise ValueError("duplicate zip records")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("overlapping zip records")
    if "constants.pkl" in records:
        raise ValueError("a TorchScript program, not a state dict")
    if "data.pkl" not in records:
        raise ValueError("a zip archive that torch.save did not write")
    return records


def _read_pickle(
    file: BinaryIO, size: int, budget: Budget, load_bytes: Callable[[bytes], object]
) -> tuple[object, set[str]]:
    """Read a plain pickle, or PyTorch's format before 1.6: pickles followed by the storages."""
    first, inert = unpickle(file, budget, load_bytes=load_bytes)
    if type(first) is not int or first != _LEGACY_MAGIC:
        return first, inert
    version, _ = unpickle(file, budget)
    if version != _LEGACY_VERSION:
        raise ValueError(f"unsupported version {version} of PyTorch's legacy format")
    system, _ = unpickle(file, budget)
    swapped = system["little_endian"] != (sys.byteorder == "little")
    contents, dtypes = {}, {}
    left = size  # bytes that the file can hold beyond the storages so far

    def load_storage(persistent_id: tuple) -> object:
        nonlocal left
        if persistent_id[0] == "module":  # a class, with its source
            return persistent_id[1]
        kind, storage_class, key, _, numel, view = persistent_id
        dtype = storage_dtype(storage_class)
        if kind != "storage" or not _is_name(key) or type(numel) is not int:
            raise ValueError("invalid reference to a storage")
        if key not in contents:
            # Its bytes follow the pickle: allocate no more than the file can hold.
            left -= numel * dtype.itemsize
            if not 0 <= left <= size:
                raise ValueError(f"storage {key} is larger than the file")
            contents[key] = _tensor(bytearray(numel * dtype.itemsize))
            dtypes[key] = dtype
        elif len(contents[key]) != numel * dtype.itemsize:
            raise ValueError(f"storage {key} has the wrong size")
        data = contents[key]
        if view is not None:
            _, offset, length = view
            data = Storage(data, dtype).view(dtype, offset, (length,), (1,)).view(torch.uint8)
        return Storage(data, dtype)

    checkpoint, inert = unpickle(file, budget, load_storage=load_storage, load_bytes=load_bytes)
    keys, _ = unpickle(file, budget)
    if sorted(keys) != sorted(contents):
        raise ValueError("storages are missing")
    for key in keys:
        _fill(contents[key], dtypes[key], file)
        if swapped:
            contents[key].untyped_storage().byteswap(dtypes[key])
    return checkpoint, inert


def _is_name(key: object) -> bool:
    return type(key) is str and len(key) < 100


def _fill(storage: Tensor, dtype: torch.dtype, file: BinaryIO) -> None:
    numel = int.from_bytes(file.read(8), "little")
    data = file.read(len(storage))
    if numel * dtype.itemsize != len(storage) or len(data) != len(storage):
        raise ValueError("the storages are truncated")
    if data:
        storage.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
