"""AP of resampled images for bootstrap intervals, without matching detections again."""

import numpy as np

from .result import IGNORED, IOU_THRESHOLDS, RECALL_THRESHOLDS, TRUE_POSITIVE, Evaluation

_WEIGHTS_AT_ONCE = 1 << 20  # of detections and annotations: some tens of megabytes


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
    weights = np.asarray(weights, np.float32)  # exact for integers up to 2^24
    order = np.lexsort((-evaluation.scores, evaluation.match_categories))  # stable, as in lvis-api
    numbers = np.arange(len(truth.category_ids) + 1)
    cuts = np.searchsorted(evaluation.match_categories[order], numbers)
    counted = truth.annotation_categories[truth.counted]
    images = truth.annotation_images[truth.counted]
    result = np.full((len(weights), len(truth.category_ids)), np.nan)
    for category in np.unique(counted).tolist():
        annotated = images[counted == category]
        rows = order[cuts[category] : cuts[category + 1]]
        found = evaluation.match_images[rows], matches.outcomes[rows]
        at_once = max(1, _WEIGHTS_AT_ONCE // (len(rows) + len(annotated)))
        for start in range(0, len(weights), at_once):
            part = weights[start : start + at_once]
            objects = part[:, annotated].sum(1, dtype=np.float64)
            ap = _average_precision(*found, part, objects)
            result[start : start + at_once, category] = np.where(objects > 0, ap, np.nan)
    return result


def _average_precision(
    images: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Compute the AP of one category: (B,) mean precision over T IoU thresholds and 101 recalls.

    Precision is sampled at true positives only: between them it falls while recall stays.

    Args:
        images: (M,) the image of each detection, by descending score.
        outcomes: (M, T).
        weights: (B, I).
        objects: (B,) number of counted annotations.
    """
    objects = np.maximum(objects, 1.0)[:, None]
    total = np.zeros(len(weights))
    before, found = None, None  # detections that are not ignored, and their cumulative number
    for outcome in outcomes.T:
        true = np.flatnonzero(outcome == TRUE_POSITIVE)
        if not len(true):
            continue
        counted = np.flatnonzero(outcome != IGNORED)
        if before is None or not np.array_equal(counted, before):  # often as at the last threshold
            before, found = counted, np.cumsum(weights[:, images[counted]], 1, dtype=np.float64)
        tp = np.cumsum(weights[:, images[true]], axis=1, dtype=np.float64)
        precision = tp / (found[:, np.searchsorted(counted, true)] + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALL_THRESHOLDS, tp / objects, side="right")
        total += (precision * np.diff(reached, axis=1, prepend=0)).sum(1)
    return total / (len(RECALL_THRESHOLDS) * len(IOU_THRESHOLDS))
