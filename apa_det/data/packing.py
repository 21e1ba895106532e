"""Packing a file in LVIS format, which is read in parts, so that it may be larger than memory."""

import os
import pickle
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from ..utils.json_files import gc_paused
from ..utils.json_stream import UnexpectedJSON, read_json_tables
from ..utils.shared_files import new_file, read_buffer
from . import records
from .faults import Fault, column
from .image_names import leaves_root, relative_name
from .packed import (
    FLOATS,
    HUNDREDTHS,
    NO_MASK,
    PICKLED,
    WHOLE_BOX,
    WHOLE_MASK,
    from_hundredths,
    stored_points,
    to_hundredths,
    write_columns,
)
from .polygon_text import PolygonCutter, Polygons
from .validation import (
    ID_LISTS,
    TABLES,
    check_annotations,
    check_images,
    read_lvis_json,
    structure_problems,
)

_BLOCK = 20_000  # masks to check at a time


@gc_paused()
def pack(json_file: str | os.PathLike) -> BinaryIO:
    """Pack an LVIS-format file, with the checks of :func:`read_lvis_json`.

    A valid file is read in parts. Any other is read as a whole, to name what is wrong with it.

    Returns:
        The file of a :class:`PackedDataset`.

    Raises:
        MissingFileError: the file does not exist.
        UserError: see :func:`read_lvis_json`; or there is no space for the dataset.
    """
    try:
        try:
            return _pack_parts(json_file)
        except (UnexpectedJSON, Fault):
            pass
        packer = _Packer()
        dataset = read_lvis_json(json_file)
        packer.add_images(dataset["images"])
        for start in range(0, len(dataset["annotations"]), _BLOCK):
            packer.add_annotations(dataset["annotations"][start : start + _BLOCK])
        packer.categories = dataset["categories"]
        return packer.finish()
    except OSError as error:
        raise UserError(
            f"No space to keep {json_file} for training: {error.strerror or error}. Set the "
            "environment variable TMPDIR to a larger folder."
        ) from error


def _pack_parts(json_file: str | os.PathLike) -> BinaryIO:
    packer = _Packer()
    found = set()
    cutter = PolygonCutter()
    for key, value in read_json_tables(json_file, TABLES, cutter.cut):
        if key not in TABLES:
            continue
        found.add(key)
        if type(value) is not list or not all(type(item) is dict for item in value):
            raise Fault(key, "is not a list of objects")
        if key == "categories":
            packer.categories += value
        elif key == "images":
            check_images(value)
            packer.add_images(value)
        else:
            check_annotations(value)
            packer.add_annotations(value, cutter.key, cutter.polygons)
    tables = {table: [] for table in found} | {"categories": packer.categories}
    if len(found) < len(TABLES) or any(structure_problems(tables)):
        raise Fault("categories", "are invalid")
    return packer.finish()


class _Packer:
    """Collects the columns of a :class:`PackedDataset`. Masks go to its file at once."""

    def __init__(self):
        self.categories: list[dict] = []
        self._file = new_file()
        self._columns: dict[str, list[np.ndarray]] = defaultdict(list)
        self._annotations = self._polygons = 0  # so far
        self._written: list[tuple[int, int, np.ndarray, slice]] = []

    def add_images(self, images: list[dict]) -> None:
        if not images:
            return
        names = [relative_name(image) for image in images]
        lists = [image.get(key, ()) for image in images for key in ID_LISTS]
        texts = [name.encode("utf-8", "surrogatepass") for name in names]
        columns = {
            "image_ids": _integers(images, "id"),
            "sizes": records.image_sizes(images).astype(np.int32),
            "outside": np.array([leaves_root(name) for name in names]),
            "has_name": np.array([image.get("file_name") is not None for image in images]),
            "texts": np.frombuffer(b"".join(texts), np.uint8),
            "text_lengths": _lengths(texts),
            "id_lists": np.fromiter(chain.from_iterable(lists), np.int64),
            "id_list_lengths": _lengths(lists).reshape(-1, 2),
        }
        self._add(columns)

    def add_annotations(
        self, annotations: list[dict], cut_key: str = "", cut: Polygons | None = None
    ) -> None:
        """Add annotations, whose masks may be under ``cut_key``, as an index into ``cut``."""
        if annotations:
            boxes = column(annotations, "bbox", "")
            columns = {
                "annotation_ids": _integers(annotations, "id"),
                "owners": _integers(annotations, "image_id"),
                "category_ids": _integers(annotations, "category_id"),
                "boxes": records.boxes(boxes),
            }
            self._add(columns)
            self._add_masks(annotations, boxes, cut_key, cut)

    def _add(self, columns: dict[str, np.ndarray]) -> None:
        for name, values in columns.items():
            self._columns[name].append(values)

    def _add_masks(
        self, annotations: list[dict], boxes: list, cut_key: str, cut: Polygons | None
    ) -> None:
        masks = [a.get("segmentation") for a in annotations]
        indices = [a.get(cut_key) for a in annotations] if cut else []
        rows = [i for i, index in enumerate(indices) if index is not None]
        columns = {
            "whole": np.array([WHOLE_BOX * _are_integers(box) for box in boxes], np.uint8),
            "mask_kinds": np.zeros(len(masks), np.uint8),
            "mask_starts": np.zeros(len(masks), np.int64),
            "first_polygons": np.zeros(len(masks), np.int64),
            "num_polygons": np.zeros(len(masks), np.int64),
        }
        if rows:
            if [indices[i] for i in rows] != [*range(len(cut.numbers))] or any(
                masks[i] is not None for i in rows
            ):
                raise Fault("segmentation", "is repeated, or in another object")
            self._write_polygons(columns, rows, cut)
        rows = [i for i, mask in enumerate(masks) if mask and type(mask) is list]
        if rows:
            polygons = [masks[i] for i in rows]
            points, lengths, numbers = records.coordinates(polygons)
            whole = np.array([_are_integers(chain.from_iterable(mask)) for mask in polygons])
            polygons = Polygons(to_hundredths(points), lengths, numbers, whole)
            self._write_polygons(columns, rows, polygons)
        for i in [i for i, mask in enumerate(masks) if mask and type(mask) is not list]:
            columns["mask_kinds"][i] = PICKLED
            columns["mask_starts"][i], columns["num_polygons"][i] = self._write_rle(masks[i])
        self._annotations += len(masks)
        self._add(columns)

    def _write_polygons(
        self, columns: dict[str, np.ndarray], rows: list[int], polygons: Polygons
    ) -> None:
        """Write the polygons of some of the masks, and fill in the columns."""
        points, lengths, numbers, whole = polygons
        if (lengths < 6).any() or (lengths % 2).any():
            raise Fault("segmentation", "has a short polygon")
        kind = HUNDREDTHS if points.dtype == np.int32 else FLOATS
        first = np.cumsum(numbers) - numbers
        self._file.write(bytes(-self._file.tell() % 8))
        place = self._file.tell()
        self._file.write(points.data)
        columns["whole"][rows] += WHOLE_MASK * whole.astype(np.uint8)
        columns["mask_kinds"][rows] = kind
        columns["mask_starts"][rows] = place + points.itemsize * _starts(lengths)[first]
        columns["first_polygons"][rows] = self._polygons + first
        columns["num_polygons"][rows] = numbers
        of_part = slice(self._polygons, self._polygons + len(lengths))
        self._written.append((kind, place, self._annotations + np.array(rows), of_part))
        self._polygons = of_part.stop
        self._add({"polygon_lengths": lengths.astype(np.int32)})

    def _write_rle(self, rle: dict) -> tuple[int, int]:
        start = self._file.tell()
        return start, self._file.write(pickle.dumps(rle))

    def finish(self) -> BinaryIO:
        """Check what needs the whole dataset, and complete the file.

        Raises:
            Fault: the dataset is invalid.
        """
        columns = {name: np.concatenate(values) for name, values in self._columns.items()}
        del self._columns
        columns = {name: columns.get(name, empty) for name, empty in _EMPTY.items()}
        order = np.argsort(columns["image_ids"], kind="stable")
        ids = columns["image_ids"][order]
        owners = _find(columns.pop("owners"), ids, "image_id")
        categories = sorted(self.categories, key=lambda category: category["id"])
        category_ids = np.array([category["id"] for category in categories], np.int64)
        columns["categories_of"] = _find(columns.pop("category_ids"), category_ids, "category_id")
        annotation_ids = columns.pop("annotation_ids")
        for values in (ids, np.sort(annotation_ids)):
            if (values[1:] == values[:-1]).any():
                raise Fault("id", "must be unique")
        self._check_masks(columns, columns["sizes"][order].astype(np.int64)[owners])
        texts, text_starts = _reorder(columns.pop("texts"), columns.pop("text_lengths"), order)
        lengths = columns.pop("id_list_lengths")
        both = (2 * order[:, None] + (0, 1)).reshape(-1)
        id_lists, id_list_starts = _reorder(columns.pop("id_lists"), lengths.reshape(-1), both)
        by_image = np.argsort(owners, kind="stable")
        lengths = columns.pop("polygon_lengths")
        images = {key: columns[key][order] for key in ("image_ids", "sizes", "outside", "has_name")}
        annotations = {key: columns[key] for key in columns if key not in images}
        annotations["boxes"] = to_hundredths(annotations["boxes"])
        for key in ("categories_of", "first_polygons", "num_polygons"):
            annotations[key] = annotations[key].astype(np.int32)
        self._file.seek(0, os.SEEK_END)
        write_columns(
            self._file,
            categories,
            {
                **images,
                **{key: values[by_image] for key, values in annotations.items()},
                "texts": texts,
                "text_starts": text_starts,
                "id_lists": id_lists,
                "id_list_starts": id_list_starts,
                "starts": _starts(np.bincount(owners, minlength=len(ids))),
                "polygon_lengths": lengths,
            },
        )
        return self._file

    def _check_masks(self, columns: dict[str, np.ndarray], sizes: np.ndarray) -> None:
        """Check masks whose images are at ``sizes``, and compress RLE."""
        kinds = columns["mask_kinds"]
        if not kinds.any():
            return
        if (kinds == NO_MASK).any():
            raise Fault("segmentation", "is missing in some annotations")
        buffer, lengths = read_buffer(self._file), columns["polygon_lengths"]
        for kind, place, rows, polygons in self._written:
            starts = _starts(lengths[polygons])
            points = from_hundredths(stored_points(buffer, kind, place, starts[-1]))
            of_polygons = np.repeat(sizes[rows], columns["num_polygons"][rows], axis=0)
            if not records.near(points, starts[:-1] // 2, of_polygons).all():
                raise Fault("segmentation", "is far from its image")
        rles = np.flatnonzero(kinds == PICKLED)
        for start in range(0, len(rles), _BLOCK):
            self._check_rles(columns, rles[start : start + _BLOCK], sizes, buffer)

    def _check_rles(
        self, columns: dict[str, np.ndarray], rows: np.ndarray, sizes: np.ndarray, buffer
    ) -> None:
        starts, numbers = columns["mask_starts"], columns["num_polygons"]
        masks = [
            pickle.loads(buffer[start : start + number])
            for start, number in zip(starts[rows].tolist(), numbers[rows].tolist(), strict=True)
        ]
        records.segmentations(masks, sizes[rows])
        self._file.seek(0, os.SEEK_END)
        for row, mask in zip(rows.tolist(), masks, strict=True):
            if type(mask["counts"]) is list:
                mask = records.to_rle(mask, *mask["size"])
                starts[row], numbers[row] = self._write_rle(mask)


_EMPTY = {
    "image_ids": np.zeros(0, np.int64),
    "sizes": np.zeros((0, 2), np.int32),
    "outside": np.zeros(0, bool),
    "has_name": np.zeros(0, bool),
    "texts": np.zeros(0, np.uint8),
    "text_lengths": np.zeros(0, np.int64),
    "id_lists": np.zeros(0, np.int64),
    "id_list_lengths": np.zeros((0, 2), np.int64),
    "annotation_ids": np.zeros(0, np.int64),
    "owners": np.zeros(0, np.int64),
    "category_ids": np.zeros(0, np.int64),
    "boxes": np.zeros((0, 4)),
    "whole": np.zeros(0, np.uint8),
    "mask_kinds": np.zeros(0, np.uint8),
    "mask_starts": np.zeros(0, np.int64),
    "first_polygons": np.zeros(0, np.int64),
    "num_polygons": np.zeros(0, np.int64),
    "polygon_lengths": np.zeros(0, np.int32),
}


def _integers(items: list[dict], key: str) -> np.ndarray:
    return records.integers(column(items, key, ""), key)


def _are_integers(values: Iterable[float]) -> bool:
    return float not in map(type, values)


def _lengths(values: list) -> np.ndarray:
    return np.fromiter(map(len, values), np.int64, len(values))


def _starts(lengths: np.ndarray) -> np.ndarray:
    """Return (N + 1,) int64, where N parts of given lengths start and end."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _reorder(
    values: np.ndarray, lengths: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of an array in another order, and where they start."""
    begins, starts = _starts(lengths)[:-1][order], _starts(lengths[order])
    indices = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths[order])
    return values[indices], starts


def _find(values: np.ndarray, ids: np.ndarray, key: str) -> np.ndarray:
    """Return the indices of values in ascending ids."""
    if not len(values):
        return np.zeros(0, np.int64)
    indices = np.searchsorted(ids, values).clip(max=len(ids) - 1)
    if not len(ids) or (ids[indices] != values).any():
        raise Fault(key, "must be an id of the file")
    return indices
