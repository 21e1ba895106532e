"""A dataset in LVIS format in arrays, in a file that the processes of a machine share.

It takes a tenth of the memory of Python objects, and a dict of an image is built when it is read.
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import BinaryIO

import numpy as np
from detectron2.structures import BoxMode

from ..utils.json_files import local_path
from ..utils.shared_files import once_per_machine, open_shared, read_buffer, share

NO_MASK, HUNDREDTHS, FLOATS, PICKLED = range(4)  # kinds of masks
WHOLE_BOX, WHOLE_MASK = 1, 2
SCALE = 100  # coordinates with at most two decimals are stored as 32-bit integers


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """The content of a file in LVIS format that training needs, apart from image files.

    Images are in the order of their ids. Annotations are in the order of their images, and in that
    of the file within an image.

    Attributes:
        file: what the arrays are in.
        categories: the C categories of the file, by ascending id.
        image_ids: (I,) int64.
        sizes: (I, 2) int32, height and width.
        outside: (I,) bool, whether the file name leaves the image root.
        has_name: (I,) bool, whether it is the ``file_name``, not from the ``coco_url``.
        texts: uint8, the file names in UTF-8, relative to the image root.
        text_starts: (I + 1,) int64.
        id_lists, id_list_starts: the category ids of ``neg_category_ids`` and
            ``not_exhaustive_category_ids`` of each image: int64, and (2 * I + 1,) int64.
        starts: (I + 1,) int64, the first annotation of each image.
        categories_of: (A,) int32, index into ``categories``.
        boxes: (A, 4), x, y, width and height; int32 in hundredths of a pixel, or float64.
        whole: (A,) uint8, 1 if the box has integers only, plus 2 if the mask has.
        mask_kinds: (A,) uint8, one of ``NO_MASK``, ``HUNDREDTHS``, ``FLOATS`` and ``PICKLED``.
        mask_starts: (A,) int64, where the mask is in the file, in bytes.
        first_polygons, num_polygons: (A,) int32, the polygons of each mask.
        polygon_lengths: int32, the number of coordinates of each polygon.
    """

    file: BinaryIO
    buffer: Sequence[int]
    categories: list[dict]
    image_ids: np.ndarray
    sizes: np.ndarray
    outside: np.ndarray
    has_name: np.ndarray
    texts: np.ndarray
    text_starts: np.ndarray
    id_lists: np.ndarray
    id_list_starts: np.ndarray
    starts: np.ndarray
    categories_of: np.ndarray
    boxes: np.ndarray
    whole: np.ndarray
    mask_kinds: np.ndarray
    mask_starts: np.ndarray
    first_polygons: np.ndarray
    num_polygons: np.ndarray
    polygon_lengths: np.ndarray

    def __reduce__(self):
        return _open, (share(self.file),)

    def count_categories(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the number of images and of annotations by category id."""
        owners = np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))
        number = len(self.categories)
        pairs = np.unique(owners * number + self.categories_of)
        ids = [category["id"] for category in self.categories]
        images, annotations = (
            dict(zip(ids, np.bincount(values, minlength=number).tolist(), strict=True))
            for values in (pairs % number, self.categories_of)
        )
        return images, annotations

    def file_name(self, image: int) -> str:
        """Return the file name of an image, relative to the image root."""
        start, end = self.text_starts[image : image + 2].tolist()
        return self.texts[start:end].tobytes().decode("utf-8", "surrogatepass")

    def image(self, image: int, file_name: str) -> dict:
        """Return the dataset dict of an image, without annotations."""
        height, width = self.sizes[image].tolist()
        a, b, c = self.id_list_starts[2 * image : 2 * image + 3].tolist()
        return {
            "file_name": file_name,
            "image_id": int(self.image_ids[image]),
            "height": height,
            "width": width,
            "neg_category_ids": self.id_lists[a:b].tolist(),
            "not_exhaustive_category_ids": self.id_lists[b:c].tolist(),
        }

    def annotations(self, indices: np.ndarray | slice, classes: np.ndarray) -> list[dict]:
        """Return annotations of dataset dicts.

        Args:
            indices: which ones.
            classes: (C,) the contiguous id of each category.
        """
        kinds, starts = self.mask_kinds[indices], self.mask_starts[indices]
        first, numbers = self.first_polygons[indices], self.num_polygons[indices]
        masks: list[list | dict | None] = [None] * len(kinds)
        for kind in np.unique(kinds).tolist():
            rows = np.flatnonzero(kinds == kind)
            if kind == PICKLED:
                values = map(self._pickled, starts[rows].tolist(), numbers[rows].tolist())
            elif kind != NO_MASK:
                values = self._polygons(kind, starts[rows], first[rows], numbers[rows])
            else:
                continue
            for row, mask in zip(rows.tolist(), values, strict=True):
                masks[row] = mask
        columns = (
            from_hundredths(self.boxes[indices]).tolist(),
            classes[self.categories_of[indices]].tolist(),
            self.whole[indices].tolist(),
            masks,
        )
        result = []
        for box, label, whole, mask in zip(*columns, strict=True):
            if whole & WHOLE_BOX:
                box = [int(value) for value in box]
            if whole & WHOLE_MASK:
                mask = [[int(value) for value in polygon] for polygon in mask]
            instance = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
            if mask is not None:
                instance["segmentation"] = mask
            result.append(instance)
        return result

    def _pickled(self, start: int, length: int) -> dict:
        return pickle.loads(self.buffer[start : start + length])

    def _polygons(
        self, kind: int, starts: np.ndarray, first: np.ndarray, numbers: np.ndarray
    ) -> list[list[list[float]]]:
        """Return masks of a kind, given where they start and their polygons."""
        lengths = self.polygon_lengths[_ranges(first, numbers)]
        totals = np.add.reduceat(lengths, np.cumsum(numbers) - numbers)
        size = 4 if kind == HUNDREDTHS else 8
        points = stored_points(self.buffer, kind, 0, len(self.buffer) // size)
        values = from_hundredths(points[_ranges(starts // size, totals)]).tolist()
        masks, at, polygon_lengths = [], 0, iter(lengths.tolist())
        for number in numbers.tolist():
            polygons = []
            for length in islice(polygon_lengths, number):
                polygons.append(values[at : at + length])
                at += length
            masks.append(polygons)
        return masks


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the integers from each start on, as many as its length, one range after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1])


def stored_points(buffer: Sequence[int], kind: int, start: int, number: int) -> np.ndarray:
    """Return coordinates in a buffer for :func:`from_hundredths`, given the kind of their masks."""
    return np.frombuffer(buffer, np.int32 if kind == HUNDREDTHS else np.float64, number, start)


def from_hundredths(values: np.ndarray) -> np.ndarray:
    """Return float64, given int32 in hundredths or float64."""
    return values / SCALE if values.dtype == np.int32 else values


def to_hundredths(values: np.ndarray) -> np.ndarray:
    """Return int32 of which :func:`from_hundredths` gives exactly the values, or the values."""
    scaled = np.rint(values * SCALE)
    if values.size and not np.abs(scaled).max() < 2**31:  # also NaN
        return values
    integers = scaled.astype(np.int32)
    return integers if (integers / SCALE == values).all() else values


def write_columns(
    file: BinaryIO, categories: list[dict], columns: Mapping[str, np.ndarray]
) -> None:
    """Append the arrays and the categories of a :class:`PackedDataset` to its file."""
    index = {}
    for name, column in columns.items():
        file.write(bytes(-file.tell() % 8))
        index[name] = (column.dtype.str, column.shape, file.tell())
        file.write(np.ascontiguousarray(column).data)
    end = file.tell()
    file.write(pickle.dumps((categories, index)))
    file.write(end.to_bytes(8, "little"))
    file.flush()


def read_columns(file: BinaryIO) -> PackedDataset:
    """Return the dataset in a file that :func:`write_columns` has completed."""
    buffer = read_buffer(file)
    end = int.from_bytes(buffer[-8:], "little")
    categories, index = pickle.loads(buffer[end:-8])
    columns = {
        name: np.frombuffer(buffer, dtype, int(np.prod(shape)), offset).reshape(shape)
        for name, (dtype, shape, offset) in index.items()
    }
    return PackedDataset(file, buffer, categories, **columns)


def _open(shared: bytes | tuple[str, int, int]) -> PackedDataset:
    return read_columns(open_shared(shared))


def read_packed(json_file: str | os.PathLike) -> PackedDataset:
    """Read an LVIS-format file, with the checks of :func:`read_lvis_json`.

    Only one process per machine reads it. The last files that were read are kept.

    Raises:
        MissingFileError: the file does not exist.
        UserError: see :func:`read_lvis_json`; or there is no space for the dataset.
    """
    status = os.stat(local_path(json_file))
    return _read(os.fspath(json_file), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(json_file: str, mtime_ns: int, size: int) -> PackedDataset:
    """Args: mtime_ns, size: a file that was written again is read again."""
    from .packing import pack  # which needs the names of this module

    key = f"{os.path.abspath(json_file)} {mtime_ns} {size}"
    return read_columns(once_per_machine(key, lambda: pack(json_file)))
