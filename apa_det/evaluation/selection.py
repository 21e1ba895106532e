"""Select the detections that LVIS evaluates, by its limits and its federated annotation."""

from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth

_SMALL_TABLE = 1 << 20  # entries of a table that may be larger than the values to look up


@dataclass(frozen=True, eq=False)
class Selection:
    """M selected detections.

    Attributes:
        rows: (M,) int64, ascending indices into the detections.
        images: (M,) int64, indices into ``GroundTruth.image_ids``.
        categories: (M,) int64, indices into ``GroundTruth.category_ids``.
    """

    rows: np.ndarray
    images: np.ndarray
    categories: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: np.ndarray) -> "Selection":
        return Selection(self.rows[keep], self.images[keep], self.categories[keep])


def select(
    truth: GroundTruth,
    detections: Detections,
    max_dets: int | None,
    max_dets_per_category: int | None,
    *,
    verified_only: bool = True,
) -> Selection:
    """Select the detections that are evaluated.

    In this order: the best of each category, the best of each image, and those whose category is
    verified as present or absent in the image. Of equal scores, the first detection is the best.

    Args:
        truth: the ground truth.
        detections: the detections.
        max_dets: limit per image. None: no limit.
        max_dets_per_category: limit per category over all images. None: no limit.
        verified_only: drop detections whose category is not verified in the image.
    """
    images = find(detections.image_ids, truth.image_ids)
    categories = find(detections.category_ids, truth.category_ids)
    chosen = None  # all
    if max_dets_per_category is not None:
        chosen = _best(categories, detections.scores, max_dets_per_category)
    if max_dets is not None:
        chosen = _best(images, detections.scores, max_dets, chosen)
    if verified_only and truth.verified is not None:
        verified = is_verified(truth, images, categories)
        chosen = verified if chosen is None else chosen & verified
    rows = np.arange(len(detections)) if chosen is None else np.flatnonzero(chosen)
    return Selection(rows, images[rows], categories[rows])


def find(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return (N,) int64, the index of each id in ``known`` (ascending), or -1.

    Ids may be any int64. The memory is that of the ids, at most about 8 MB more.
    """
    if not len(known):
        return np.full(len(ids), -1)
    low, high = int(known[0]), int(known[-1])
    size = high - low + 1
    if size > max(_SMALL_TABLE, len(ids)):
        indices = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[indices] == ids, indices, -1)
    table = np.full(size + 1, -1)  # the last is for unknown ids
    table[known - low] = np.arange(len(known))
    return table[np.where((ids >= low) & (ids <= high), ids - low, size)]


def is_verified(truth: GroundTruth, images: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the category is verified as present or absent in the image."""
    if truth.verified is None:
        return np.ones(len(images), bool)
    pairs = images * len(truth.category_ids) + categories
    size = len(truth.image_ids) * len(truth.category_ids)
    if size > max(_SMALL_TABLE, pairs.nbytes):
        return find(pairs, truth.verified) >= 0
    table = np.zeros(size, bool)
    table[truth.verified] = True
    return table[pairs]


def _best(
    groups: np.ndarray, scores: np.ndarray, limit: int, among: np.ndarray | None = None
) -> np.ndarray | None:
    """Select the ``limit`` highest scores of each group.

    Args:
        groups: (N,) integers from 0.
        scores: (N,).
        limit: per group.
        among: (N,) bool, the candidates. None: all.

    Returns:
        (N,) bool; None if all are selected.
    """
    rows = slice(None) if among is None else np.flatnonzero(among)
    sizes = np.bincount(groups[rows], minlength=groups.max(initial=0) + 1)
    if sizes.max() <= limit:
        return among
    crowded = sizes[groups] > limit
    crowded = np.flatnonzero(crowded if among is None else crowded & among)
    order = crowded[np.lexsort((-scores[crowded], groups[crowded]))]  # stable
    ordered = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    best = np.ones(len(groups), bool) if among is None else among.copy()
    best[order[rank >= limit]] = False
    return best
