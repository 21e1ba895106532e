"""Which detections play a part in the LVIS metric: its limits and its federated annotation."""

from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth

__all__ = ["Selection", "find", "select"]

_TABLE_LIMIT = 1 << 28


@dataclass(frozen=True, eq=False)
class Selection:
    """Detections that play a part.

    Attributes:
        rows: (M,) int64, ascending places in the detections.
        images: (M,) int64, places in ``GroundTruth.image_ids``.
        categories: (M,) int64, places in ``GroundTruth.category_ids``.
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
) -> Selection:
    """Keep the best detections of each category, of these the best of each picture, and of these
    the ones whose category is known to be in the picture or not.

    Where scores are equal, the detection that comes first is the better one.
    """
    images = find(detections.image_ids, truth.image_ids)
    categories = find(detections.category_ids, truth.category_ids)
    chosen = None  # all
    if max_dets_per_category is not None:
        chosen = _best(categories, detections.scores, max_dets_per_category)
    if max_dets is not None:
        chosen = _best(images, detections.scores, max_dets, chosen)
    if truth.verified is not None:
        verified = _is_verified(truth, images, categories)
        chosen = verified if chosen is None else chosen & verified
    rows = np.arange(len(detections)) if chosen is None else np.flatnonzero(chosen)
    return Selection(rows, images[rows], categories[rows])


def find(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) int64: the place of each id in ``known``, which ascends; -1: it is not there."""
    low, high = (known[0], known[-1]) if len(known) else (0, -1)
    if 0 <= low and high < _TABLE_LIMIT:  # ids are small in most datasets
        table = np.full(high + 2, -1)
        table[known] = np.arange(len(known))
        if len(ids) and 0 <= ids.min() and ids.max() <= high:
            return table[ids]
        return table[np.where((ids >= 0) & (ids <= high), ids, high + 1)]
    places = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
    return np.where(known[places] == ids, places, -1) if len(known) else np.full(len(ids), -1)


def _is_verified(truth: GroundTruth, images: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """(N,) bool: the category is known to be in the picture or not."""
    size = len(truth.image_ids) * len(truth.category_ids)
    pairs = images * len(truth.category_ids) + categories
    if size > _TABLE_LIMIT:
        return np.isin(pairs, truth.verified)
    table = np.zeros(size, bool)
    table[truth.verified] = True
    return table[pairs]


def _best(
    groups: np.ndarray, scores: np.ndarray, limit: int, among: np.ndarray | None = None
) -> np.ndarray | None:
    """(N,) bool: the ``limit`` highest scores of each group.

    Args:
        groups: (N,) whole numbers from 0.
        scores: (N,).
        limit: for each group.
        among: (N,) bool, what can be chosen. None: all.

    Returns:
        None: all are chosen.
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
