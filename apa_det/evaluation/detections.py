"""Detections in columns: numpy arrays, and RLE masks in one buffer."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..utils.json_files import json_list

__all__ = ["Detections", "Masks"]


@dataclass(frozen=True, eq=False)
class Masks:
    """N masks as compressed RLE (COCO's), the bytes of all in one buffer.

    Attributes:
        sizes: (N, 2) int32, height and width of the picture of each mask.
        counts: (B,) uint8, the RLE bytes of all masks, one after another.
        offsets: (N + 1,) int64; mask i is ``counts[offsets[i]:offsets[i + 1]]``.
    """

    sizes: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    @staticmethod
    def from_rles(rles: Sequence[dict]) -> "Masks":
        """From ``{"size": [height, width], "counts": bytes or str}`` each."""
        counts = [rle["counts"] for rle in rles]
        try:
            joined = b"".join(counts)
        except TypeError:  # as text
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
        """The masks at these places, in this order."""
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
        """``{"size": [height, width], "counts": bytes}`` each, of all masks or some rows."""
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
    """N detections in columns, in the order in which they came.

    Attributes:
        image_ids: (N,) int64, the dataset's own.
        category_ids: (N,) int64, the dataset's own.
        scores: (N,) float32 or float64.
        boxes: (N, 4) float32 or float64, XYWH in pixels. None: there are masks only.
        masks: N masks. None: there are boxes only.
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
        """From LVIS or COCO results.

        Args:
            records: dicts with ``image_id``, ``category_id``, ``score``, and ``bbox`` (XYWH) or
                ``segmentation`` (compressed RLE) or both: the same ones in all.

        Raises:
            ValueError: a record lacks one of them.
        """
        first = records[0] if len(records) else {"bbox": None}
        geometry = [key for key in ("bbox", "segmentation") if key in first]
        if not geometry:
            raise ValueError("The first result has neither bbox nor segmentation.")
        columns = {}
        for key in ("image_id", "category_id", "score", *geometry):
            try:
                columns[key] = [record[key] for record in records]
            except KeyError:
                place = next(i for i, record in enumerate(records) if key not in record)
                raise ValueError(f"Result {place} (from 0) has no {key}: add it.") from None
        return Detections(
            np.array(columns["image_id"], np.int64),
            np.array(columns["category_id"], np.int64),
            np.array(columns["score"], np.float64),
            np.array(columns["bbox"], np.float64).reshape(-1, 4) if "bbox" in columns else None,
            Masks.from_rles(columns["segmentation"]) if "segmentation" in columns else None,
        )

    @staticmethod
    def concatenate(parts: Sequence["Detections"]) -> "Detections":
        """All detections one after another.

        Raises:
            ValueError: some have boxes, or masks, and others have none.
        """
        parts = [part for part in parts if len(part)] or list(parts[:1])
        if not parts:
            ids = np.empty(0, np.int64)
            return Detections(ids, ids, np.empty(0, np.float32), np.empty((0, 4), np.float32))
        if len(parts) == 1:
            return parts[0]
        for name in ("boxes", "masks"):
            if len({getattr(part, name) is None for part in parts}) > 1:
                raise ValueError(f"Some detections have {name}, and others have none.")
        return Detections(
            np.concatenate([part.image_ids for part in parts]),
            np.concatenate([part.category_ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            None if parts[0].boxes is None else np.concatenate([part.boxes for part in parts]),
            None if parts[0].masks is None else Masks.concatenate([part.masks for part in parts]),
        )

    def select(self, index: np.ndarray | slice) -> "Detections":
        """The detections at these places (whole numbers, booleans or a slice), in this order."""
        return Detections(
            self.image_ids[index],
            self.category_ids[index],
            self.scores[index],
            None if self.boxes is None else self.boxes[index],
            None if self.masks is None else self.masks.select(index),
        )

    def records(self, block: int = 10_000) -> Iterator[dict]:
        """LVIS results one by one, ready for JSON. Only ``block`` of them exist at a time."""
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
        """Write LVIS results, whole or not at all, with little more memory than the file's tail."""
        with json_list(json_file) as write:
            for record in self.records():
                write(record)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
