"""IoUs of detections with the annotations of their images, for millions of detections."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from .detections import Masks
from .ground_truth import GroundTruth

_PAIRS_AT_ONCE = 1 << 18


class Pairs(NamedTuple):
    """P pairs of a detection and an annotation of its image, ordered by detection.

    Attributes:
        rows: (P,) int64, indices of the detections.
        annotations: (P,) int64, indices of the annotations; ascending for each detection.
        ious: (P,) float64.
    """

    rows: np.ndarray
    annotations: np.ndarray
    ious: np.ndarray

    def take(self, keep: np.ndarray) -> "Pairs":
        return Pairs(*(values[keep] for values in self))

    def highest(self) -> "Pairs":
        """Return the pair with the highest IoU of each detection; of equals, the first."""
        if not len(self.rows):
            return self
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        lengths = np.diff(starts, append=len(self.rows))
        highest = np.repeat(np.maximum.reduceat(self.ious, starts), lengths)
        top = np.flatnonzero(self.ious == highest)
        return self.take(top[np.diff(self.rows[top], prepend=-1) > 0])


def box_pairs(
    truth: GroundTruth,
    annotations: np.ndarray,
    boxes: np.ndarray,
    images: np.ndarray,
    min_iou: float,
) -> Iterator[Pairs]:
    """Yield the pairs of boxes with at least this IoU, in blocks that do not split a detection.

    IoUs equal those of pycocotools.

    Args:
        truth: the ground truth.
        annotations: (A,) int64, ascending indices of the annotations to consider.
        boxes: (N, 4) XYWH in pixels.
        images: (N,) int64, their indices in ``truth.image_ids``, in any order.
        min_iou: > 0.
    """
    annotations, starts, counts = _by_group(
        annotations, truth.annotation_images[annotations], len(truth.image_ids)
    )
    targets = truth.boxes[annotations]
    areas = targets[:, 2] * targets[:, 3]
    counts = counts[images]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(_PAIRS_AT_ONCE, total, _PAIRS_AT_ONCE)) + 1
    for first, last in pairwise(np.unique([0, *cuts, len(images)]).tolist()):
        rows, within = _ragged(counts[first:last])
        indices = starts[images[first:last]][rows] + within
        block = boxes[first:last].astype(np.float64)
        common = 1.0
        for axis in (0, 1):
            side = _common_sides(block[:, axis::2], targets[:, axis::2], rows, indices)
            # The intersection is at most this side times the other side of the smaller box.
            longest = np.maximum(block[rows, axis + 2], targets[indices, axis + 2])
            keep = np.flatnonzero(side > 0.999 * min_iou * longest)
            rows, indices = rows[keep], indices[keep]
            common = side[keep] if axis == 0 else common[keep] * side[keep]
        ious = common / ((block[:, 2] * block[:, 3])[rows] + areas[indices] - common)
        keep = ious >= min_iou
        yield Pairs(rows[keep] + first, annotations[indices[keep]], ious[keep])


def _common_sides(
    boxes: np.ndarray, targets: np.ndarray, rows: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """Return the length of the intersection of intervals (start, length); negative if apart."""
    ends = np.minimum(boxes.sum(1)[rows], targets.sum(1)[indices])
    return ends - np.maximum(boxes[rows, 0], targets[indices, 0])


def mask_pairs(
    truth: GroundTruth,
    annotations: np.ndarray,
    masks: Masks,
    chosen: np.ndarray,
    images: np.ndarray,
    categories: np.ndarray,
) -> Pairs:
    """Return the pairs of masks of the same category that overlap.

    Args:
        truth: the ground truth, with masks.
        annotations: (A,) int64, ascending indices of the annotations to consider.
        masks: the masks of all detections.
        chosen: (N,) int64, the indices of the N detections to consider.
        images: (N,) int64, their indices in ``truth.image_ids``.
        categories: (N,) int64, their indices in ``truth.category_ids``.

    Returns:
        The pairs; ``rows`` are indices into ``chosen``.
    """
    size = len(truth.category_ids)
    keys = truth.annotation_images[annotations] * size + truth.annotation_categories[annotations]
    wanted = images * size + categories
    known, groups = np.unique(keys, return_inverse=True)
    annotations, starts, counts = _by_group(annotations, groups, len(known))
    found = np.searchsorted(known, wanted)
    annotated = np.flatnonzero(np.append(known, -1)[found] == wanted)
    rows, firsts, numbers = _by_group(annotated, found[annotated], len(known))
    parts = []
    for group in np.flatnonzero(numbers).tolist():
        members = rows[firsts[group] : firsts[group] + numbers[group]]
        targets = annotations[starts[group] : starts[group] + counts[group]]
        shapes = masks.rles(chosen[members]), truth.masks.rles(targets)
        ious = mask_util.iou(*shapes, [False] * len(targets))
        row, column = np.nonzero(ious)
        parts.append((members[row], targets[column], ious[row, column]))
    if not parts:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    pairs = Pairs(*map(np.concatenate, zip(*parts, strict=True)))
    return pairs.take(np.argsort(pairs.rows, kind="stable"))


def _by_group(
    indices: np.ndarray, groups: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices ordered by group, the start of each group, and its size."""
    counts = np.bincount(groups, minlength=num_groups)
    return indices[np.argsort(groups, kind="stable")], np.cumsum(counts) - counts, counts


def _ragged(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return row and position of each entry of rows with these lengths."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
