"""AP of resampled images for bootstrap intervals, without matching detections again."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..utils.progress import track
from .result import IGNORED, IOU_THRESHOLDS, RECALL_THRESHOLDS, TRUE_POSITIVE, Evaluation

_LEVEL = 95  # percent
_WEIGHTS_AT_ONCE = 1 << 18  # of detections and annotations, for the cache of the CPU


@dataclass(frozen=True)
class Difference:
    """The difference of two APs; NaN if it is undefined."""

    difference: float
    low: float  # bounds of the 95 % bootstrap interval
    high: float

    @staticmethod
    def from_resamples(difference: float, resampled: np.ndarray) -> "Difference":
        """Return a difference with the percentile interval of its resamples.

        Args:
            difference: the difference on the dataset itself.
            resampled: (B,) the difference in each resample; NaN where it is undefined.
        """
        resampled = resampled[~np.isnan(resampled)]
        if not len(resampled):
            return Difference(difference, np.nan, np.nan)
        margin = (100 - _LEVEL) / 2
        bounds = np.percentile(resampled, [margin, 100 - margin])
        return Difference(difference, *bounds.tolist())

    @property
    def is_clear(self) -> bool:
        """Return whether the interval does not contain 0."""
        return self.low > 0 or self.high < 0


def draw_image_weights(num_images: int, num_resamples: int, seed: int = 0) -> np.ndarray:
    """Draw B bootstrap resamples of I images; return (B, I) int64, how often each is drawn."""
    shares = np.full(num_images, 1 / num_images)
    return np.random.default_rng(seed).multinomial(num_images, shares, size=num_resamples)


def resampled_ap(evaluation: Evaluation, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the AP of datasets in which images are repeated.

    Matches do not depend on other images, so only precision and recall are recomputed. The result
    is exactly the AP of a dataset with copies of the images.

    Args:
        evaluation: an evaluation with ``matches``.
        weights: (B, I) integers, how often each of I images occurs in each of B datasets.

    Returns:
        (B,) AP, and one for each frequency group (APr, APc, APf), as fractions. Categories without
        ground truth in a dataset are excluded; NaN if the whole group has none.
    """
    truth = evaluation.ground_truth
    categories = _category_ap(evaluation, weights)
    groups = {"AP": np.ones(len(truth.category_ids), bool)}
    for group, name in enumerate(truth.groups.names):
        groups[f"AP{name}"] = truth.category_groups == group
    return {name: _mean_of_defined(categories[:, members]) for name, members in groups.items()}


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the (B,) means of (B, K) over values that are not NaN; NaN if there are none."""
    defined = ~np.isnan(values)
    totals, undefined = np.where(defined, values, 0.0).sum(1), np.full(len(values), np.nan)
    return np.divide(totals, defined.sum(1), out=undefined, where=defined.any(1))


def _category_ap(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """Return (B, K) APs; NaN if the category has no ground truth in the dataset."""
    truth, matches = evaluation.ground_truth, evaluation.matches
    weights = np.asarray(weights, np.int32)
    order = np.lexsort((-evaluation.scores, evaluation.match_categories))  # stable, as in lvis-api
    numbers = np.arange(len(truth.category_ids) + 1)
    cuts = np.searchsorted(evaluation.match_categories[order], numbers)
    counted = np.flatnonzero(truth.counted)
    counted = counted[np.argsort(truth.annotation_categories[counted], kind="stable")]
    bounds = np.searchsorted(truth.annotation_categories[counted], numbers)
    result = np.full((len(weights), len(truth.category_ids)), np.nan)

    def resample(category: int) -> None:
        annotated = truth.annotation_images[counted[bounds[category] : bounds[category + 1]]]
        rows = order[cuts[category] : cuts[category + 1]]
        found = evaluation.match_images[rows], matches.outcomes[rows]
        at_once = max(1, _WEIGHTS_AT_ONCE // (len(rows) + len(annotated)))
        for start in range(0, len(weights), at_once):
            part = weights[start : start + at_once]
            objects = part[:, annotated].sum(1, dtype=np.float64)
            ap = _average_precision(*found, part, objects)
            result[start : start + at_once, category] = np.where(objects > 0, ap, np.nan)

    categories = np.flatnonzero(np.diff(bounds)).tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy computes without the GIL
        done = pool.map(resample, categories)
        for _ in track(done, "Bootstrap", "categories", len(categories)):
            pass
    return result


def _average_precision(
    images: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Compute the AP of one category: (B,) mean precision over T IoU thresholds and 101 recalls.

    Precision is sampled at true positives only: between them it falls while recall stays.

    Args:
        images: (M,) the image of each detection, by descending score.
        outcomes: (M, T).
        weights: (B, I) int32.
        objects: (B,) number of counted annotations.
    """
    total = np.zeros(len(weights))
    is_true = outcomes == TRUE_POSITIVE
    ends = np.flatnonzero(is_true.any(1))  # true positives at any threshold
    if not len(ends):
        return total
    images, outcomes = images[: ends[-1] + 1], outcomes[: ends[-1] + 1]
    found = np.cumsum(np.take(weights, images, 1), axis=1, dtype=np.int32)[:, ends]
    own = np.take(weights, images[ends], 1)
    # Recall thresholds that are reached with 0, 1, 2, ... true positives.
    recalls = np.arange(own.sum(1).max() + 1) / np.maximum(objects, 1)[:, None]
    reached = np.searchsorted(RECALL_THRESHOLDS, recalls, side="right").astype(np.int16)
    starts = (np.arange(len(weights)) * recalls.shape[1])[:, None]
    before, area = None, total
    for outcome, true in zip(outcomes.T, is_true[ends].T, strict=True):
        if before is not None and np.array_equal(outcome, before):
            total += area
            continue
        before, area = outcome, np.zeros(len(weights))
        columns = np.flatnonzero(true)
        if not len(columns):
            continue
        counted = np.take(found, columns, 1)
        ignored = np.flatnonzero(outcome == IGNORED)
        if len(ignored):
            skipped = np.zeros((len(weights), len(ignored) + 1), np.int32)
            np.cumsum(np.take(weights, images[ignored], 1), axis=1, out=skipped[:, 1:])
            counted -= np.take(skipped, np.searchsorted(ignored, ends[columns]), 1)
        tp = np.cumsum(np.take(own, columns, 1), axis=1, dtype=np.int32)
        precision = tp / (counted + np.spacing(1))
        np.maximum.accumulate(precision[:, ::-1], axis=1, out=precision[:, ::-1])
        steps = np.diff(np.take(reached, tp + starts), axis=1, prepend=0)
        area = np.einsum("bn,bn->b", precision, steps)
        total += area
    return total / (len(RECALL_THRESHOLDS) * len(IOU_THRESHOLDS))
