"""Detections in columns: NumPy arrays, and RLE masks in one buffer."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ..data import records as contract
from ..data.faults import column, convert
from ..errors import UserError
from ..utils.json_files import json_list


@dataclass(frozen=True, eq=False)
class Masks:
    """N masks as COCO's compressed RLE, concatenated in one buffer.

    Attributes:
        sizes: (N, 2) int32, height and width of each mask.
        counts: (B,) uint8, the concatenated RLE bytes of all masks.
        offsets: (N + 1,) int64; mask i is ``counts[offsets[i]:offsets[i + 1]]``.
    """

    sizes: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    @staticmethod
    def from_rles(rles: Sequence[dict]) -> "Masks":
        """Build masks from RLEs ``{"size": [height, width], "counts": bytes or str}``."""
        counts = [rle["counts"] for rle in rles]
        try:
            joined = b"".join(counts)
        except TypeError:  # counts as str
            counts = [c.encode() if isinstance(c, str) else c for c in counts]
            joined = b"".join(counts)
        sizes = chain.from_iterable([rle["size"] for rle in rles])
        return Masks(
            np.fromiter(sizes, np.int32, 2 * len(rles)).reshape(-1, 2),
            np.frombuffer(joined, np.uint8),
            _offsets(np.fromiter(map(len, counts), np.int64, len(counts))),
        )

    @staticmethod
    def concatenate(parts: Sequence["Masks"]) -> "Masks":
        lengths = [np.diff(part.offsets) for part in parts]
        return Masks(
            np.concatenate([part.sizes for part in parts] or [np.empty((0, 2), np.int32)]),
            np.concatenate([part.counts for part in parts] or [np.empty(0, np.uint8)]),
            _offsets(np.concatenate(lengths or [np.empty(0, np.int64)])),
        )

    def select(self, index: np.ndarray | slice) -> "Masks":
        """Return the masks at ``index`` (integers, a bool mask or a slice), in its order."""
        rows = np.arange(len(self))[index]
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        buffer = memoryview(self.counts)
        counts = b"".join(buffer[a:b] for a, b in zip(starts, ends, strict=True))
        return Masks(
            self.sizes[rows],
            np.frombuffer(counts, np.uint8),
            _offsets(np.diff(self.offsets)[rows]),
        )

    def rles(self, rows: np.ndarray | slice = slice(None)) -> list[dict]:
        """Return ``{"size": [height, width], "counts": bytes}`` for each mask in ``rows``."""
        buffer = memoryview(self.counts)
        return [
            {"size": size, "counts": bytes(buffer[a:b])}
            for size, a, b in zip(
                self.sizes[rows].tolist(),
                self.offsets[:-1][rows].tolist(),
                self.offsets[1:][rows].tolist(),
                strict=True,
            )
        ]


@dataclass(frozen=True, eq=False)
class Detections:
    """N detections in columns, in input order.

    Attributes:
        image_ids: (N,) int64, ids of the dataset.
        category_ids: (N,) int64, ids of the dataset.
        scores: (N,) float32 or float64.
        boxes: (N, 4) float32 or float64, XYWH in pixels. None: masks only.
        masks: N masks. None: boxes only.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None
    masks: Masks | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @staticmethod
    def from_records(records: Sequence[dict]) -> "Detections":
        """Build detections from LVIS or COCO results.

        Args:
            records: dicts with ``image_id``, ``category_id``, ``score``, and ``bbox`` (XYWH),
                ``segmentation`` (compressed RLE) or both. All records have the keys of the first.

        Raises:
            UserError: a record lacks a key, or has an invalid value; see
                :mod:`apa_det.data.records`.
        """
        first = records[0] if len(records) else {"bbox": None}
        geometry = [key for key in ("bbox", "segmentation") if key in first]
        if not geometry:
            raise UserError("Result 0 has neither bbox nor segmentation.")

        def columns(part: Sequence[dict]) -> Detections:
            values = {
                key: column(part, key, "all results need the keys of the first")
                for key in ("image_id", "category_id", "score", *geometry)
            }
            masks = None
            if "segmentation" in values:
                sizes = contract.rle_sizes(values["segmentation"])
                counts = contract.compressed_counts(values["segmentation"], sizes)
                masks = Masks(sizes.astype(np.int32), *counts)
            return Detections(
                contract.integers(values["image_id"], "image_id", whole_floats=True),
                contract.integers(values["category_id"], "category_id", whole_floats=True),
                contract.numbers(values["score"], "score", "be a finite number"),
                contract.boxes(values["bbox"]) if "bbox" in values else None,
                masks,
            )

        return convert(records, columns, "Result")

    @staticmethod
    def concatenate(parts: Sequence["Detections"]) -> "Detections":
        """Concatenate detections.

        Raises:
            UserError: only some parts have boxes, or only some have masks.
        """
        parts = [part for part in parts if len(part)] or list(parts[:1])
        if not parts:
            ids = np.empty(0, np.int64)
            return Detections(ids, ids, np.empty(0, np.float32), np.empty((0, 4), np.float32))
        if len(parts) == 1:
            return parts[0]
        for name in ("boxes", "masks"):
            if len({getattr(part, name) is None for part in parts}) > 1:
                raise UserError(f"Some detections have {name} and others do not.")
        return Detections(
            np.concatenate([part.image_ids for part in parts]),
            np.concatenate([part.category_ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            None if parts[0].boxes is None else np.concatenate([part.boxes for part in parts]),
            None if parts[0].masks is None else Masks.concatenate([part.masks for part in parts]),
        )

    def select(self, index: np.ndarray | slice) -> "Detections":
        """Return the detections at ``index`` (integers, a bool mask or a slice), in its order."""
        return Detections(
            self.image_ids[index],
            self.category_ids[index],
            self.scores[index],
            None if self.boxes is None else self.boxes[index],
            None if self.masks is None else self.masks.select(index),
        )

    def for_server(self) -> "Detections":
        """Return the detections as LVIS's evaluation server takes them: masks without boxes.

        The server evaluates with lvis-api, which takes the size of an object from its box if it has
        one, and else from its mask.
        """
        return self if self.masks is None else replace(self, boxes=None)

    def records(self, block: int = 10_000) -> Iterator[dict]:
        """Yield LVIS results that ``json`` can write, built ``block`` at a time to save memory."""
        for start in range(0, len(self), block):
            rows = slice(start, start + block)
            columns = {
                "image_id": self.image_ids[rows].tolist(),
                "category_id": self.category_ids[rows].tolist(),
                "score": self.scores[rows].tolist(),
            }
            if self.boxes is not None:
                columns["bbox"] = self.boxes[rows].tolist()
            if self.masks is not None:
                columns["segmentation"] = [
                    {**rle, "counts": rle["counts"].decode()} for rle in self.masks.rles(rows)
                ]
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    def write(self, json_file: str | os.PathLike) -> None:
        """Write LVIS results to a JSON file, atomically and record by record."""
        with json_list(json_file) as write:
            for record in self.records():
                write(record)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
