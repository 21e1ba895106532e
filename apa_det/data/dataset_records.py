"""Dataset dicts that are built when they are read, and what samplers need of them in arrays."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from .image_names import relative_file_name
from .packed import NO_MASK, PICKLED, PackedDataset, from_hundredths


@dataclass(frozen=True, eq=False)
class _Source:
    """A packed dataset, with the choices of its registration."""

    packed: PackedDataset
    image_root: str
    classes: np.ndarray  # contiguous id of each category

    def record(self, image: int, annotations: np.ndarray | slice) -> dict:
        name = os.path.join(self.image_root, self.packed.file_name(image))
        record = self.packed.image(image, name)
        record["annotations"] = self.packed.annotations(annotations, self.classes)
        return record


class DatasetRecords(Sequence[dict]):
    """The dataset dicts of datasets in LVIS format: a sequence that behaves like a list of dicts.

    A dict is built each time that it is read, so a change of it is not kept: for that, make a list
    of it. All processes of a machine share the data; a copy of this object, or one that is pickled
    for a data worker, does so too.
    """

    def __init__(
        self,
        sources: Sequence[_Source],
        source: np.ndarray,
        images: np.ndarray,
        starts: np.ndarray,
        annotations: np.ndarray,
    ):
        """
        Args:
            sources: the datasets.
            source: (N,) the dataset of each record.
            images: (N,) its image in the dataset.
            starts: (N + 1,) its first annotation in ``annotations``.
            annotations: (A,) indices of annotations in the dataset.
        """
        self._sources = tuple(sources)
        self._source, self._images = source, images
        self._starts, self._annotations = starts, annotations

    @staticmethod
    def of(
        packed: PackedDataset,
        image_root: str | os.PathLike,
        classes: np.ndarray,
        *,
        allow_outside_root: bool = False,
    ) -> "DatasetRecords":
        """Return the records of all images of a dataset.

        Args:
            packed: the dataset.
            image_root: folder that file names are relative to.
            classes: the contiguous id of each category, by ascending category id.
            allow_outside_root: see :func:`relative_file_name`.

        Raises:
            UserError: see :func:`relative_file_name`.
        """
        if not allow_outside_root:
            for i in np.flatnonzero(packed.outside).tolist():
                relative_file_name(
                    {"id": int(packed.image_ids[i]), "file_name": packed.file_name(i)}
                )
        number = len(packed.image_ids)
        return DatasetRecords(
            [_Source(packed, os.fspath(image_root), np.asarray(classes, np.int64))],
            np.zeros(number, np.uint8),
            np.arange(number),
            packed.starts,
            np.arange(len(packed.boxes)),
        )

    @staticmethod
    def concatenate(parts: Sequence["DatasetRecords"]) -> "DatasetRecords":
        """Return the records of several datasets, one after the other."""
        firsts = np.cumsum([0, *(len(part._sources) for part in parts)])
        ends = np.cumsum([0, *(len(part._annotations) for part in parts)])
        pairs = zip(parts, firsts, ends, strict=False)
        columns = [(p._source + first, p._starts[:-1] + end) for p, first, end in pairs]
        return DatasetRecords(
            [source for part in parts for source in part._sources],
            np.concatenate([source for source, _ in columns]),
            np.concatenate([part._images for part in parts]),
            np.append(np.concatenate([starts for _, starts in columns]), ends[-1]),
            np.concatenate([part._annotations for part in parts]),
        )

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> "DatasetRecords": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        index = range(len(self))[index]
        start, end = self._starts[index : index + 2].tolist()
        source = self._sources[self._source[index]]
        return source.record(int(self._images[index]), self._annotations[start:end])

    def __iter__(self) -> Iterator[dict]:
        return map(self.__getitem__, range(len(self)))

    def select(self, indices: Iterable[int] | np.ndarray) -> "DatasetRecords":
        """Return some of the records, given (M,) integer indices."""
        indices = np.asarray(indices, np.int64)
        lengths = np.diff(self._starts)[indices]
        starts = np.append(0, np.cumsum(lengths))
        shift = np.repeat(self._starts[:-1][indices] - starts[:-1], lengths)
        return DatasetRecords(
            self._sources,
            self._source[indices],
            self._images[indices],
            starts,
            self._annotations[np.arange(starts[-1]) + shift],
        )

    def with_annotations(self, kept: np.ndarray) -> "DatasetRecords":
        """Return the records with only some of their annotations, given (A,) bool."""
        starts = np.append(0, np.cumsum(kept))[self._starts]
        annotations = self._annotations[kept]
        return DatasetRecords(self._sources, self._source, self._images, starts, annotations)

    # ---------------------------------------------------------------- by record
    @cached_property
    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self._by_record(lambda packed: packed.image_ids)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, height and width."""
        return self._by_record(lambda packed: packed.sizes)

    @property
    def num_annotations(self) -> np.ndarray:
        """(N,) int64."""
        return np.diff(self._starts)

    def _by_record(self, column) -> np.ndarray:
        columns = [column(source.packed) for source in self._sources]
        return _gather(columns, self._source, self._images)

    # ---------------------------------------------------------------- by annotation
    @property
    def owners(self) -> np.ndarray:
        """(A,) int64, the record of each annotation."""
        return np.repeat(np.arange(len(self)), self.num_annotations)

    @property
    def classes(self) -> np.ndarray:
        """(A,) int64, contiguous ids."""
        return self._by_annotation(lambda source: source.classes[source.packed.categories_of])

    @property
    def boxes(self) -> np.ndarray:
        """(A, 4) float64: x, y, width and height."""
        return self._by_annotation(lambda source: from_hundredths(source.packed.boxes))

    @property
    def has_mask(self) -> np.ndarray:
        """(A,) bool."""
        return self._by_annotation(lambda source: source.packed.mask_kinds != NO_MASK)

    @property
    def has_rle(self) -> np.ndarray:
        """(A,) bool: whether the mask is RLE."""
        return self._by_annotation(lambda source: source.packed.mask_kinds == PICKLED)

    def _by_annotation(self, column) -> np.ndarray:
        columns = [column(source) for source in self._sources]
        return _gather(columns, self._source[self.owners], self._annotations)


def _gather(columns: list[np.ndarray], source: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return ``columns[source[i]][indices[i]]`` for each i."""
    if len(columns) == 1:
        return columns[0][indices]
    result = np.empty((len(indices), *columns[0].shape[1:]), np.result_type(*columns))
    for i, values in enumerate(columns):
        result[source == i] = values[indices[source == i]]
    return result


OF_DICTS = (list, DatasetRecords)  # types of datasets of dicts; others are PyTorch's
