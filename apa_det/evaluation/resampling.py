"""AP of resampled pictures, for bootstrap intervals: what matches what is found only once."""

import numpy as np

from .result import FALSE_POSITIVE, IOU_THRESHOLDS, RECALL_THRESHOLDS, TRUE_POSITIVE, Evaluation

__all__ = ["draw_picture_weights", "resampled_ap"]


def draw_picture_weights(num_pictures: int, num_resamples: int, seed: int = 0) -> np.ndarray:
    """(B, I) int64: how often each of I pictures is drawn in B bootstrap resamples of I draws."""
    shares = np.full(num_pictures, 1 / num_pictures)
    return np.random.default_rng(seed).multinomial(num_pictures, shares, size=num_resamples)


def resampled_ap(evaluation: Evaluation, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AP of datasets in which each picture stands so many times.

    Detections and objects of a picture match in every copy of it as they match in it, so precision
    and recall alone are computed anew: exactly the AP of the dataset with the copies.

    Args:
        evaluation: with ``matches``.
        weights: (B, I) whole numbers, how often each picture stands in each of B datasets.

    Returns:
        (B,) AP, and an AP for each frequency group (APr, APc, APf), as fractions. NaN: a dataset
        has nothing in that group. A category of which it has nothing does not count.
    """
    truth = evaluation.ground_truth
    categories = _category_ap(evaluation, weights)
    groups = {"AP": np.ones(len(truth.category_ids), bool)}
    for group, name in enumerate(truth.groups.names):
        groups[f"AP{name}"] = truth.category_groups == group
    return {name: _mean_of_defined(categories[:, members]) for name, members in groups.items()}


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """(B,) over those of (B, K) that are not NaN; NaN: there are none."""
    defined = ~np.isnan(values)
    totals = np.where(defined, values, 0.0).sum(1)
    return np.divide(
        *(totals, defined.sum(1)), out=np.full(len(values), np.nan), where=defined.any(1)
    )


def _category_ap(evaluation: Evaluation, weights: np.ndarray) -> np.ndarray:
    """(B, K), NaN where the resample has nothing of the category."""
    truth, matches = evaluation.ground_truth, evaluation.matches
    weights = np.asarray(weights, np.float32)  # whole numbers are exact up to 2^24
    order = np.lexsort((-evaluation.scores, evaluation.match_categories))  # stable, as lvis-api's
    numbers = np.arange(len(truth.category_ids) + 1)
    cuts = np.searchsorted(evaluation.match_categories[order], numbers)
    counted = truth.annotation_categories[truth.counted]
    pictures = truth.annotation_images[truth.counted]
    result = np.full((len(weights), len(truth.category_ids)), np.nan)
    for category in np.unique(counted).tolist():
        objects = weights[:, pictures[counted == category]].sum(1, dtype=np.float64)
        rows = order[cuts[category] : cuts[category + 1]]
        ap = _average_precision(
            evaluation.match_images[rows], matches.outcomes[rows], weights, objects
        )
        result[:, category] = np.where(objects > 0, ap, np.nan)
    return result


def _average_precision(
    pictures: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """
    Of one category. Precision is looked at where a true positive is added: elsewhere it is lower
    than at the one before, and recall is the same.

    Args:
        pictures: (M,) the picture of each detection, by falling score.
        outcomes: (M, T).
        weights: (B, I).
        objects: (B,) how many there are to find.

    Returns:
        (B,) the mean precision over T thresholds and 101 recalls.
    """
    seen, places = np.unique(pictures, return_inverse=True)
    weights = weights[:, seen]
    objects = np.maximum(objects, 1.0)[:, None]
    total = np.zeros(len(weights))
    for outcome in outcomes.T:
        true = np.flatnonzero(outcome == TRUE_POSITIVE)
        if not len(true):
            continue
        false = np.flatnonzero(outcome[: true[-1]] == FALSE_POSITIVE)
        cells = places[false] * len(true) + np.searchsorted(true, false)
        added = np.bincount(cells, minlength=len(seen) * len(true)).reshape(len(seen), -1)
        found = np.cumsum(weights[:, places[true]], axis=1, dtype=np.float64)
        wrong = np.cumsum(weights @ added.astype(np.float32), axis=1, dtype=np.float64)
        precision = found / (found + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALL_THRESHOLDS, found / objects, side="right")
        total += (precision * np.diff(reached, axis=1, prepend=0)).sum(1)
    return total / (len(RECALL_THRESHOLDS) * len(IOU_THRESHOLDS))
