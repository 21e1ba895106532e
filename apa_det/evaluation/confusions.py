"""Confusions of categories: objects that are taken for another category."""

from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth
from .overlaps import box_pairs
from .selection import find, is_verified, select

MIN_IOU = 0.5


@dataclass(frozen=True)
class Confusion:
    """Objects of one category that are taken for the same other category.

    Attributes:
        category, taken_for: indices in ``GroundTruth.category_ids``.
        count: the number of these objects.
        certain: those of them in images where the other category is verified: all its objects are
            annotated there, so this is certainly an error.
        objects: the number of objects of ``category``.
        mean_score: mean score of the detections that take them for the other category.
        annotation: index of the object with the highest such score.
        score: that score.
        box: the box of its detection, XYWH in pixels.
    """

    category: int
    taken_for: int
    count: int
    certain: int
    objects: int
    mean_score: float
    annotation: int
    score: float
    box: tuple[float, float, float, float]


def find_confusions(
    ground_truth: GroundTruth, detections: Detections, *, max_dets: int | None = 300
) -> list[Confusion]:
    """Find for which other categories the objects of each category are taken.

    An object is taken for the category of the detection with the highest score whose box has an
    IoU of at least 0.5 with it; of equal scores, its own category. Detections that cover an object
    of their own category as well are only considered for that one. LVIS does not verify every
    category in every image: where the other category is not verified, or its annotations may be
    incomplete, the detection may be correct, so ``certain`` does not include it.

    Args:
        ground_truth: the ground truth.
        detections: with boxes.
        max_dets: consider this many detections per image, by score. None: all.

    Returns:
        The confusions, the most frequent first; of equals, the one with the larger part of the
        objects, then that with the higher score.
    """
    truth = ground_truth
    chosen = select(truth, detections, max_dets, None, verified_only=False)
    scores = detections.scores[chosen.rows]
    annotated = np.flatnonzero(truth.has_area)
    boxes = detections.boxes[chosen.rows]
    highest = np.full(len(truth.annotation_ids), -np.inf)
    parts = []
    for pairs in box_pairs(truth, annotated, boxes, chosen.images, MIN_IOU):
        categories = truth.annotation_categories[pairs.annotations]
        own = categories == chosen.categories[pairs.rows]
        explained = np.isin(pairs.rows, pairs.rows[own])
        pairs = pairs.take((own | ~explained) & truth.counted[pairs.annotations])
        np.maximum.at(highest, pairs.annotations, scores[pairs.rows])
        parts.append(pairs.take(scores[pairs.rows] == highest[pairs.annotations]))
    rows = np.concatenate([part.rows for part in parts] or [np.empty(0, np.int64)])
    targets = np.concatenate([part.annotations for part in parts] or [np.empty(0, np.int64)])
    best = scores[rows] == highest[targets]
    rows, targets = rows[best], targets[best]
    others = truth.annotation_categories[targets] != chosen.categories[rows]
    order = np.lexsort((others, targets))  # of equal scores, the own category first
    order = order[np.diff(targets[order], prepend=-1) > 0]
    order = order[others[order]]
    return _counted(truth, targets[order], chosen.rows[rows[order]], detections)


def _counted(
    truth: GroundTruth, annotations: np.ndarray, rows: np.ndarray, detections: Detections
) -> list[Confusion]:
    """Return the confusions of annotations with the detections at ``rows``."""
    if not len(rows):
        return []
    size = len(truth.category_ids)
    categories = truth.annotation_categories[annotations]
    taken_for = find(detections.category_ids[rows], truth.category_ids)
    images = truth.annotation_images[annotations]
    certain = is_verified(truth, images, taken_for)
    certain &= ~np.isin(images * size + taken_for, truth.not_exhaustive)
    scores = detections.scores[rows].astype(np.float64)
    order = np.lexsort((-scores, taken_for, categories))
    keys = (categories * size + taken_for)[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    objects = np.bincount(truth.annotation_categories[truth.counted], minlength=size)
    first = order[starts]
    counts = np.diff(starts, append=len(keys))
    columns = (
        categories[first],
        taken_for[first],
        counts,
        np.add.reduceat(certain[order].astype(np.int64), starts),
        objects[categories[first]],
        np.add.reduceat(scores[order], starts) / counts,
        annotations[first],
        scores[first],
    )
    boxes = map(tuple, detections.boxes[rows[first]].tolist())
    found = [Confusion(*row) for row in zip(*(c.tolist() for c in columns), boxes, strict=True)]
    return sorted(found, key=lambda c: (-c.count, -c.count / c.objects, -c.mean_score))
