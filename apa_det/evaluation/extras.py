"""Variants of LVIS AP: AP-fixed and AP-pool."""

import logging

import numpy as np
from detectron2.utils.logger import log_first_n

from .detections import Detections
from .engines import evaluate
from .ground_truth import GroundTruth
from .result import FALSE_POSITIVE, RECALL_THRESHOLDS, TRUE_POSITIVE

MAX_DETS_PER_CATEGORY = 10_000
_MANY = 0.05  # share of the images
FIXED_NOTE = (
    "AP_fixed: AP of the 10,000 best detections of each category over all images, instead of a "
    "limit per image. Categories then do not compete for the places in an image; it needs files "
    "with many more than 300 detections per image."
)
POOLED_NOTE = (
    "AP_pool: AP of one ranking of the detections of all categories, limited as for AP_fixed. It "
    "falls if a score does not mean the same in all categories, which AP does not notice; frequent "
    "categories dominate it."
)


def fixed_ap(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    engine: str = "fast",
    max_dets_per_category: int = MAX_DETS_PER_CATEGORY,
) -> dict[str, float]:
    """Compute AP-fixed, with a detection limit per category instead of per image.

    So categories do not compete for the 300 detections of an image (Dave et al., "Evaluating
    Large-Vocabulary Object Detectors: The Devil is in the Details", arXiv 2102.01066). The model
    must output many more than 300 detections per image.

    Args:
        ground_truth, detections, iou_type, engine: see :func:`evaluate`.
        max_dets_per_category: evaluate this many detections per category, by score.

    Returns:
        AP_fixed, APr_fixed, APc_fixed and APf_fixed as fractions; NaN without ground truth.
    """
    _note_limit(detections, len(ground_truth.category_ids), max_dets_per_category)
    limits = {"max_dets": None, "max_dets_per_category": max_dets_per_category}
    metrics = evaluate(ground_truth, detections, iou_type, engine=engine, **limits).metrics()
    return {f"AP{name}_fixed": metrics[f"AP{name}"] for name in ("", *ground_truth.groups.names)}


def _note_limit(detections: Detections, num_categories: int, max_per_category: int) -> None:
    """Log, once, that the detector has cut off detections that AP-fixed would evaluate.

    It has if many images have as many detections as any image has.
    """
    _, of_category = np.unique(detections.category_ids, return_counts=True)
    if np.count_nonzero(of_category >= max_per_category) == num_categories:
        return
    _, of_image = np.unique(detections.image_ids, return_counts=True)
    most = of_image.max(initial=0)
    if np.count_nonzero(of_image == most) < max(2, _MANY * len(of_image)):
        return
    text = (
        f"AP-fixed is too low: many images have exactly {most} detections, the detector's limit, "
        f"while AP-fixed evaluates up to {max_per_category:,} of each category. Increase the "
        "number of detections per image (TEST.DETECTIONS_PER_IMAGE)."
    )
    log_first_n(logging.INFO, text, name=__name__, key="message")


def pooled_ap(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    engine: str = "fast",
    max_dets_per_category: int = MAX_DETS_PER_CATEGORY,
) -> dict[str, float]:
    """Compute AP-pool, from one precision-recall curve of all categories together.

    Detections must still match objects of their own category. AP-pool drops if scores are not
    comparable across categories. As with AP-fixed, the detections are limited per category, not per
    image (Dave et al., arXiv 2102.01066).

    Args:
        ground_truth, detections, iou_type, engine: see :func:`evaluate`.
        max_dets_per_category: evaluate this many detections per category, by score.

    Returns:
        AP_pool, and APr_pool, APc_pool and APf_pool over the categories of a group, as fractions;
        NaN without ground truth.
    """
    evaluation = evaluate(
        ground_truth,
        detections,
        iou_type,
        engine=engine,
        max_dets=None,
        max_dets_per_category=max_dets_per_category,
        matches=True,
    )
    truth, matches = ground_truth, evaluation.matches
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
    """Return the AP of (M, T) outcomes in descending score order, over T IoU thresholds."""
    if not num_objects:
        return float("nan")
    precisions = []
    for column in outcomes.T:
        true = np.cumsum(column == TRUE_POSITIVE, dtype=np.float64)
        false = np.cumsum(column == FALSE_POSITIVE, dtype=np.float64)
        precision = true / (true + false + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        indices = np.searchsorted(true / num_objects, RECALL_THRESHOLDS, side="left")
        precisions.append(np.append(precision, 0.0)[indices])  # 0 beyond the last recall
    return float(np.mean(precisions))
