"""Reading of checkpoint files as data: whatever a file says, none of it is run."""

import io
import logging
import mmap
import sys
import zipfile
from typing import BinaryIO

import torch
from torch import Tensor

from .constructors import Inert, Storage, storage_dtype
from .safetensors import is_safetensors, read_safetensors
from .unpickler import RunsCodeError, unpickle

__all__ = ["load_checkpoint"]

logger = logging.getLogger(__name__)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def load_checkpoint(path: str) -> dict:
    """Read a file of weights: PyTorch's (either format), a pickle of arrays, or safetensors.

    The format is told from the contents. Objects of classes that are neither plain data nor tensors
    are left out, and a line in the log names their classes.

    Args:
        path: a local file.

    Returns:
        The dict that the file holds: of tensors (on the CPU, without gradient; NumPy arrays are
        tensors too) and of plain data, nested.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, is damaged or cut off, or names a program to run.
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no checkpoint {path}.") from None
    try:
        with file:
            checkpoint, inert = _read(file)
    except RunsCodeError as error:
        raise ValueError(
            f"{path} is a pickle made to call {error}, which no checkpoint needs: nothing was run; "
            "delete it, and get the weights from a place that you trust."
        ) from None
    except Exception as error:  # a stranger's bytes can go wrong in any way
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one ({reason}): download or save it again."
        ) from error
    if type(checkpoint) is not dict:
        kind = checkpoint.name if isinstance(checkpoint, Inert) else type(checkpoint).__name__
        raise ValueError(
            f"{path} holds an object of {kind} instead of a dict of tensors: "
            "load it where it comes from, and save its state_dict()."
        )
    if inert:
        logger.info(
            "%s: left out objects that are no plain data, of %s", path, ", ".join(sorted(inert))
        )
    return checkpoint


def _read(file: BinaryIO) -> tuple[object, set[str]]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if not isinstance(file, io.BytesIO):
        # Of a map, one can ask for more than there is without allocating it.
        file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if is_safetensors(start, size):
        return read_safetensors(file, size), set()
    return _read_pickle(file, size)


def _read_bytes(data: bytes) -> object:
    return _read(io.BytesIO(data))[0]


def _read_zip(file: BinaryIO, size: int) -> tuple[object, set[str]]:
    """PyTorch's format since 1.6: a pickle, and a record for each storage."""
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, size)
        byteorder = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
        if byteorder not in (b"little", b"big"):
            raise ValueError("its byte order is neither little nor big")
        swapped = byteorder.decode() != sys.byteorder
        contents = {}

        def load_storage(persistent_id: tuple) -> Storage:
            kind, storage_class, key, _, numel = persistent_id
            dtype = storage_dtype(storage_class)
            if kind != "storage" or f"data/{key}" not in records:
                raise ValueError(f"its storage {key} is missing")
            if key not in contents:
                data = bytearray(records[f"data/{key}"].file_size)
                with archive.open(records[f"data/{key}"]) as record:
                    record.readinto(data)
                contents[key] = _tensor(data)
                if swapped:
                    contents[key].untyped_storage().byteswap(dtype)
            if len(contents[key]) != numel * dtype.itemsize:
                raise ValueError(f"its storage {key} is not of the size that it says")
            return Storage(contents[key], dtype)

        pickled = io.BytesIO(archive.read(records["data.pkl"]))
        return unpickle(pickled, load_storage=load_storage, load_bytes=_read_bytes)


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The records of the archive by their names in its one folder, as torch.save writes them."""
    infos = archive.infolist()
    folder = infos[0].filename.partition("/")[0] + "/"
    records = {info.filename[len(folder) :]: info for info in infos}
    for info in infos:
        path = info.filename
        if not path.startswith(folder) or "\\" in path or {"", ".", ".."} & {*path.split("/")}:
            raise ValueError(f"it is a zip archive with a record {path!r}, where no other one lies")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"it is a zip archive with a compressed record {path!r}")
    if len(records) < len(infos):
        raise ValueError("it is a zip archive with two records of one name")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("it is a zip archive with records that overlap")
    if "constants.pkl" in records:
        raise ValueError("it is a TorchScript program instead of a state dict")
    if "data.pkl" not in records:
        raise ValueError("it is a zip archive that torch.save did not write")
    return records


def _read_pickle(file: BinaryIO, size: int) -> tuple[object, set[str]]:
    """A plain pickle, or PyTorch's format before 1.6: pickles, and after them the storages."""
    first, inert = unpickle(file, load_bytes=_read_bytes)
    if type(first) is not int or first != _LEGACY_MAGIC:
        return first, inert
    version, _ = unpickle(file)
    if version != _LEGACY_VERSION:
        raise ValueError(f"it is of version {version} of PyTorch's old format")
    system, _ = unpickle(file)
    swapped = system["little_endian"] != (sys.byteorder == "little")
    contents, dtypes = {}, {}

    def load_storage(persistent_id: tuple) -> object:
        if persistent_id[0] == "module":  # a class, with its source
            return persistent_id[1]
        kind, storage_class, key, _, numel, view = persistent_id
        dtype = storage_dtype(storage_class)
        if kind != "storage" or type(key) is not str:
            raise ValueError("it refers to something that is no storage")
        if key not in contents:
            # It comes after the pickle; what does not fit into the file is not allocated.
            if not 0 <= numel * dtype.itemsize <= size - sum(map(len, contents.values())):
                raise ValueError(f"its storage {key} is larger than the file")
            contents[key] = _tensor(bytearray(numel * dtype.itemsize))
            dtypes[key] = dtype
        elif len(contents[key]) != numel * dtype.itemsize:
            raise ValueError(f"its storage {key} is not of the size that it says")
        data = contents[key]
        if view is not None:
            _, offset, length = view
            data = Storage(data, dtype).view(dtype, offset, (length,), (1,)).view(torch.uint8)
        return Storage(data, dtype)

    checkpoint, inert = unpickle(file, load_storage=load_storage, load_bytes=_read_bytes)
    keys, _ = unpickle(file)
    if sorted(keys) != sorted(contents):
        raise ValueError("it does not hold the storages that it needs")
    for key in keys:
        _fill(contents[key], dtypes[key], file)
        if swapped:
            contents[key].untyped_storage().byteswap(dtypes[key])
    return checkpoint, inert


def _fill(storage: Tensor, dtype: torch.dtype, file: BinaryIO) -> None:
    numel = int.from_bytes(file.read(8), "little")
    data = file.read(len(storage))
    if numel * dtype.itemsize != len(storage) or len(data) != len(storage):
        raise ValueError("its storages are cut off")
    if data:
        storage.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
