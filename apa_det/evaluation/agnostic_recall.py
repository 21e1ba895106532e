"""Class-agnostic recall: how many objects are localized, whatever the predicted class."""

from itertools import pairwise

import numpy as np
import pycocotools.mask as mask_util

from ..utils.progress import track
from .detections import Detections
from .ground_truth import GroundTruth
from .result import IOU_THRESHOLDS
from .selection import find

LIMITS = (100, 300)  # detections per image
_NUM_MATCHED = np.array([bin(bits).count("1") for bits in range(1 << len(IOU_THRESHOLDS))])


def class_agnostic_recall(
    ground_truth: GroundTruth, detections: Detections, iou_type: str = "bbox"
) -> dict[str, float]:
    """Compute the recall of the objects by detections of any class.

    In each image, the 100 or 300 detections with the highest scores are matched with all annotated
    objects, as if there were one class (pycocotools with ``useCats=0``). Only annotated objects
    count, so the recall is also well defined where not all classes are annotated. It is the mean
    over the IoU thresholds 0.5, 0.55, ..., 0.95 and over objects, not over categories.

    Args:
        ground_truth, detections: see :func:`evaluate`.
        iou_type: "bbox" or "segm".

    Returns:
        AR_agnostic@100 and AR_agnostic@300, and those of the objects of each frequency group
        (ARr_agnostic@100, ...), as fractions; NaN without objects.
    """
    truth = ground_truth
    groups = truth.category_groups[truth.annotation_categories]
    members = {"": truth.counted}
    for group, name in enumerate(truth.groups.names):
        members[name] = truth.counted & (groups == group)
    recalls = {}
    for limit, matched in _matched_thresholds(truth, detections, iou_type).items():
        shares = _NUM_MATCHED[matched] / len(IOU_THRESHOLDS)
        for name, rows in members.items():
            mean = float(shares[rows].mean()) if rows.any() else float("nan")
            recalls[f"AR{name}_agnostic@{limit}"] = mean
    return recalls


def _matched_thresholds(
    truth: GroundTruth, detections: Detections, iou_type: str
) -> dict[int, np.ndarray]:
    """Return (G,) integers by limit: bit t is set if the annotation is matched at threshold t."""
    result = {limit: np.zeros(len(truth.annotation_ids), np.int64) for limit in LIMITS}
    numbers = np.arange(len(truth.image_ids) + 1)
    images = find(detections.image_ids, truth.image_ids)
    detected = np.lexsort((-detections.scores, images))  # stable
    starts = np.searchsorted(images[detected], numbers)
    if iou_type != "bbox":
        _ = truth.masks  # shows its own progress
    counted = np.flatnonzero(truth.counted)
    counted = counted[np.argsort(truth.annotation_images[counted], kind="stable")]
    bounds = np.searchsorted(truth.annotation_images[counted], numbers)
    for image in track(numbers[:-1], "Class-agnostic recall", "images"):
        annotated = counted[bounds[image] : bounds[image + 1]]
        rows = detected[starts[image] : starts[image + 1]][: max(LIMITS)]
        if len(annotated) and len(rows):
            ious = _ious(truth, detections, iou_type, annotated, rows)
            for limit, matched in zip(LIMITS, _match(ious), strict=True):
                result[limit][annotated] = matched
    return result


def _ious(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    annotated: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """Return (D, G) IoUs of detections and annotations of one image."""
    if iou_type == "bbox":
        shapes = detections.boxes[rows].astype(np.float64), truth.boxes[annotated]
    else:
        shapes = detections.masks.rles(rows), truth.masks.rles(annotated)
    return mask_util.iou(*shapes, [False] * len(annotated))


def _match(ious: np.ndarray) -> list[list[int]]:
    """Match the detections of an image, by descending score, with its objects.

    At each threshold on its own, a detection takes the object with the highest IoU of those that
    are left; of equal IoUs the last, as in pycocotools.

    Args:
        ious: (D, G), the detections by descending score.

    Returns:
        For each limit, G integers: bit t is set if the object is matched at threshold t.
    """
    detections, objects = np.nonzero(ious >= IOU_THRESHOLDS[0])
    values = ious[detections, objects]
    order = np.lexsort((-objects, -values, detections))
    reached = np.searchsorted(IOU_THRESHOLDS, values[order], side="right")
    columns = detections[order], objects[order], (1 << reached) - 1
    pairs = list(zip(*(column.tolist() for column in columns), strict=True))
    matched, results = [0] * ious.shape[1], []
    used = [0] * len(ious)  # thresholds at which the detection is matched
    cuts = [0, *np.searchsorted(detections[order], LIMITS).tolist()]
    for start, end in pairwise(cuts):
        for detection, obj, thresholds in pairs[start:end]:
            new = thresholds & ~(matched[obj] | used[detection])
            matched[obj] |= new
            used[detection] |= new
        results.append(matched.copy())
    return results
