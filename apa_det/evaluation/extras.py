"""AP by rules other than LVIS's: AP-fixed and AP-pool."""

import logging

import numpy as np

from .detections import Detections
from .engines import evaluate
from .ground_truth import GroundTruth
from .result import FALSE_POSITIVE, RECALL_THRESHOLDS, TRUE_POSITIVE, Evaluation

__all__ = ["MAX_DETS_PER_CATEGORY", "fixed_ap", "pooled_ap"]

logger = logging.getLogger(__name__)

MAX_DETS_PER_CATEGORY = 10_000


def fixed_ap(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    engine: str = "fast",
    max_dets_per_category: int = MAX_DETS_PER_CATEGORY,
) -> dict[str, float]:
    """AP-fixed: so many detections of each category over all pictures, and no limit for a picture.

    It does not let categories compete for the 300 places of a picture (Dave et al., "Evaluating
    Large-Vocabulary Object Detectors: The Devil is in the Details", arXiv 2102.01066). For that
    the model has to give many more than 300 detections for each picture.

    Returns:
        AP_fixed, APr_fixed, APc_fixed and APf_fixed, as fractions; NaN: no ground truth.
    """
    found = np.bincount(np.searchsorted(ground_truth.category_ids, detections.category_ids))
    few = len(ground_truth.category_ids) - np.count_nonzero(found >= max_dets_per_category)
    if few:
        logger.info(
            "AP-fixed takes %s detections of each category, and %d categories have fewer: it is "
            "lower than it could be. Let the model give more detections for each picture.",
            f"{max_dets_per_category:,}",
            few,
        )
    evaluation = evaluate(
        ground_truth,
        detections,
        iou_type,
        engine=engine,
        max_dets=None,
        max_dets_per_category=max_dets_per_category,
    )
    metrics = evaluation.metrics()
    return {f"AP{name}_fixed": metrics[f"AP{name}"] for name in ("", *ground_truth.groups.names)}


def pooled_ap(evaluation: Evaluation) -> dict[str, float]:
    """AP-pool: one precision-recall curve over the detections of all categories together.

    Detections still have to match objects of their own category. It falls where scores of
    different categories do not mean the same (Dave et al., arXiv 2102.01066).

    Args:
        evaluation: with ``matches``.

    Returns:
        AP_pool, and APr_pool, APc_pool and APf_pool over the categories of a group, as fractions;
        NaN: no ground truth.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    order = np.argsort(-evaluation.scores, kind="stable")
    outcomes = matches.outcomes[order]
    groups = truth.category_groups[evaluation.match_categories[order]]
    annotated = truth.category_groups[truth.annotation_categories[truth.counted]]
    pools = {"AP_pool": _average_precision(outcomes, len(annotated))}
    for group, name in enumerate(truth.groups.names):
        pools[f"AP{name}_pool"] = _average_precision(
            outcomes[groups == group], np.count_nonzero(annotated == group)
        )
    return pools


def _average_precision(outcomes: np.ndarray, num_objects: int) -> float:
    """Of (M, T) outcomes by falling score: the mean precision at 101 recalls and T thresholds."""
    if not num_objects:
        return float("nan")
    precisions = []
    for column in outcomes.T:
        true = np.cumsum(column == TRUE_POSITIVE, dtype=np.float64)
        false = np.cumsum(column == FALSE_POSITIVE, dtype=np.float64)
        precision = true / (true + false + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(true / num_objects, RECALL_THRESHOLDS, side="left")
        precisions.append(np.append(precision, 0.0)[places])  # 0 at recalls that are not reached
    return float(np.mean(precisions))
