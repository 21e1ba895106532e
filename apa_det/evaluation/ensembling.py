"""Combine the detections of several detectors, per image and class."""

from collections.abc import Callable, Sequence

import numpy as np
import pycocotools.mask as mask_util

from ..errors import MissingPackageError, UserError
from ..utils.progress import track
from .detections import Detections, Masks
from .ground_truth import GroundTruth
from .selection import find

Fused = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_ensemble_boxes():
    """Import the package ensemble-boxes.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import ensemble_boxes
    except ImportError as error:
        raise MissingPackageError(
            f"Ensembles need the package ensemble-boxes ({error}). "
            'Run: pip install "apa_det[ensemble]"'
        ) from error
    return ensemble_boxes


def weighted_boxes_fusion(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    sources: np.ndarray,
    weights: np.ndarray,
    iou: float,
) -> Fused:
    """Fuse boxes that overlap by more than ``iou`` into their mean, weighted by score and weight.

    "Weighted boxes fusion: Ensembling boxes from different object detection models" (Solovyev,
    Wang and Gabruseva, 2021). The fused score is the mean score of the boxes, times the fraction of
    detectors among them.

    Args:
        boxes: (N, 4) float64, XYXY of one image, normalized to [0, 1].
        scores: (N,) float64, positive.
        classes: (N,) int64.
        sources: (N,) int64, the detector (of M) of each box.
        weights: (M,) float64, the detectors' weights.
        iou: boxes with a larger IoU belong to one object.

    Returns:
        Boxes (F, 4), scores (F,), classes (F,) and mask weights (F, N): the weight of each box's
        mask in each fused mask. A box contributes score times weight to the fused box of its class
        with the largest IoU; a fused box always includes the box with the largest IoU.
    """
    by_source = [np.flatnonzero(sources == i) for i in range(len(weights))]
    lists = [[values[rows].tolist() for rows in by_source] for values in (boxes, scores, classes)]
    fused, fused_scores, labels = load_ensemble_boxes().weighted_boxes_fusion(
        *lists, weights=weights.tolist(), iou_thr=iou
    )
    labels = labels.astype(np.int64)
    overlaps = _ious(fused, boxes)
    overlaps[labels[:, None] != classes] = -1
    members = overlaps == overlaps.max(axis=0)
    members |= overlaps == overlaps.max(axis=1, keepdims=True)
    members &= overlaps >= 0
    return fused, fused_scores, labels, members * (scores * weights[sources])


def non_maximum_suppression(*args: np.ndarray | float) -> Fused:
    """Suppress boxes that overlap a box of a higher score by more than ``iou``.

    Scores are first multiplied by the detector's weight relative to the largest weight. Arguments
    and results are those of :func:`weighted_boxes_fusion`.
    """
    return _suppressed(3, *args)


def soft_nms(*args: np.ndarray | float) -> Fused:
    """Like :func:`non_maximum_suppression`, but multiply suppressed scores by 1 − IoU.

    Linear Soft-NMS: "Soft-NMS: Improving Object Detection With One Line of Code" (Bodla et al.,
    ICCV 2017), equation 3.
    """
    return _suppressed(1, *args)


ENSEMBLE_METHODS: dict[str, Callable] = {
    "wbf": weighted_boxes_fusion,
    "nms": non_maximum_suppression,
    "soft-nms": soft_nms,
}


def ensemble(
    truth: GroundTruth,
    detections: Sequence[Detections],
    *,
    method: str = "wbf",
    iou: float = 0.55,
    weights: Sequence[float] | None = None,
    min_score: float = 0.0,
    max_dets: int | None = 300,
    names: Sequence[str] | None = None,
) -> Detections:
    """Combine the detections of several detectors on the same images.

    Args:
        truth: the ground truth, for the image sizes.
        detections: those of each detector, all with masks or all without. Boxes are clipped to the
            image; empty boxes are dropped.
        method: a name in :data:`ENSEMBLE_METHODS`. "wbf" averages the masks of fused boxes,
            weighted by score and weight, and thresholds the mean at 0.5. With the other methods a
            box keeps its mask.
        iou: boxes of a class with a larger IoU belong to one object.
        weights: positive weight of each detector. None: 1 each.
        min_score: drop detections with this score or less.
        max_dets: keep this many detections per image, by score. None: all.
        names: names of the detectors, for errors.

    Returns:
        The combined detections, by ascending image id and descending score.

    Raises:
        UserError: an argument is invalid, a score is outside [0, 1], an image is not in the ground
            truth, or only some detectors have masks.
        MissingPackageError: ensemble-boxes is not installed.
    """
    names = names or [f"Result {i + 1} of {len(detections)}" for i in range(len(detections))]
    weights = np.array([1.0] * len(detections) if weights is None else weights, np.float64)
    _check(detections, names, method, iou, weights)
    load_ensemble_boxes()
    sources = np.repeat(np.arange(len(detections)), list(map(len, detections)))
    merged = Detections.concatenate(detections)
    images = find(merged.image_ids, truth.image_ids)
    unknown = np.flatnonzero(images < 0)
    if len(unknown):
        raise UserError(
            f"{names[sources[unknown[0]]]}: image_id must be an image id of the ground truth, got "
            f"{merged.image_ids[unknown[0]]}."
        )
    sizes = truth.image_sizes[images].astype(np.float64)
    boxes = _normalized(merged.boxes, sizes)
    usable = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (merged.scores > min_score)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(merged.image_ids[rows], kind="stable")]
    if not len(rows):
        return merged.select(rows)
    ends = np.flatnonzero(np.diff(merged.image_ids[rows])) + 1
    parts = []
    for group in track(np.split(rows, ends), "Combining detections", "images"):
        columns = boxes, merged.scores.astype(np.float64), merged.category_ids, sources
        fused, scores, classes, mask_weights = ENSEMBLE_METHODS[method](
            *(column[group] for column in columns), weights, iou
        )
        best = np.argsort(-scores, kind="stable")[:max_dets]
        masks = None
        if merged.masks is not None:
            rles = merged.masks.rles(group)
            masks = Masks.from_rles([_mean_mask(rles, row) for row in mask_weights[best]])
        size = np.tile(sizes[group[0], ::-1], 2)
        xyxy, image_ids = fused[best] * size, np.full(len(best), merged.image_ids[group[0]])
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        parts.append(Detections(image_ids, classes[best], scores[best], xywh, masks))
    return Detections.concatenate(parts)


def _check(detections, names, method: str, iou: float, weights: np.ndarray) -> None:
    if method not in ENSEMBLE_METHODS:
        raise UserError(f"method must be one of {', '.join(ENSEMBLE_METHODS)}; got {method!r}.")
    if not 0 < iou < 1:
        raise UserError(f"iou must be in (0, 1), got {iou}.")
    if weights.shape != (len(detections),) or not (weights > 0).all():
        raise UserError(
            f"weights must be {len(detections)} positive numbers, one per result; "
            f"got {weights.tolist()}."
        )
    pairs = [(name, part) for name, part in zip(names, detections, strict=True) if len(part)]
    for name, part in pairs:
        if not (part.scores.min() >= 0 and part.scores.max() <= 1):
            raise UserError(
                f"Scores must be in [0, 1] to be combined, but {name} has scores from "
                f"{part.scores.min():g} to {part.scores.max():g}."
            )
    masks = {part.masks is not None: name for name, part in pairs}
    if len(masks) > 1:
        raise UserError(
            f"{masks[True]} has masks, but {masks[False]} does not: combine the boxes only."
        )


def _normalized(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Convert XYWH in pixels to XYXY, normalized and clipped to [0, 1]."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return (corners / np.tile(sizes[:, ::-1], 2)).clip(0, 1)


def _ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (A, B) IoUs of XYXY boxes."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    intersection = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return intersection / (areas[0][:, None] + areas[1] - intersection)


def _suppressed(method: int, boxes, scores, classes, sources, weights, iou: float) -> Fused:
    """Return the boxes of each class that a method of ensemble-boxes keeps, with their masks."""
    scores = scores * (weights / weights.max())[sources]
    load_ensemble_boxes()
    # The package's nms and soft_nms do not return indices.
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    kept, kept_scores = [], []
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        new_scores = scores[rows]  # updated in place, in the order of the boxes
        indices = cpu_soft_nms_float(
            boxes[rows], new_scores, Nt=iou, sigma=0.0, thresh=0.0, method=method
        )
        kept.append(rows[indices])
        kept_scores.append(new_scores[new_scores > 0])
    rows = np.concatenate(kept)
    mask_weights = np.zeros((len(rows), len(boxes)))
    mask_weights[np.arange(len(rows)), rows] = 1
    return boxes[rows], np.concatenate(kept_scores), classes[rows], mask_weights


def _mean_mask(rles: list[dict], weights: np.ndarray) -> dict:
    """Return the weighted mean of masks, thresholded at 0.5."""
    members = np.flatnonzero(weights)
    weights = weights[members] / weights[members].sum()
    largest = weights.argmax()
    if weights[largest] > 0.5:  # the other masks cannot change the result
        return rles[members[largest]]
    rles = [rles[i] for i in members]
    left, top, width, height = mask_util.toBbox(mask_util.merge(rles)).astype(int)
    rows, columns = slice(top, top + height), slice(left, left + width)
    masks = mask_util.decode(rles)
    mean = np.tensordot(masks[rows, columns], weights, 1)
    result = np.zeros(masks.shape[:2], np.uint8, order="F")
    result[rows, columns] = mean >= 0.5 - 1e-9
    return mask_util.encode(result)
