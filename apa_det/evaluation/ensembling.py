"""Several detectors' results combined into one, picture by picture and class by class."""

from collections.abc import Callable, Sequence

import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

from .detections import Detections, Masks
from .ground_truth import GroundTruth
from .selection import find

__all__ = ["ENSEMBLE_METHODS", "ensemble", "load_ensemble_boxes"]


def load_ensemble_boxes():
    """The package ensemble-boxes.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import ensemble_boxes
    except ImportError as error:
        raise ImportError(
            f'Ensembles need the package ensemble-boxes: pip install "apa_det[ensemble]" ({error})'
        ) from error
    return ensemble_boxes


def weighted_boxes_fusion(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    sources: np.ndarray,
    weights: np.ndarray,
    iou: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes that overlap by more than ``iou`` become their mean, weighted by score and weight.

    "Weighted boxes fusion: Ensembling boxes from different object detection models" (Solovyev,
    Wang and Gabruseva, 2021). A score is the mean of its boxes', times the share of the detectors
    that found it.

    Args:
        boxes: (N, 4) float64, XYXY in parts of the picture, of one picture.
        scores: (N,) float64, above 0.
        classes: (N,) int64.
        sources: (N,) int64, which of the M detectors each is of.
        weights: (M,) float64 of the detectors.
        iou: boxes above this are of one object.

    Returns:
        Boxes (F, 4), scores (F,), classes (F,) and shares (F, N): how much of each box's mask is in
        that of the fused one. It is score times weight where the box overlaps no other fused box of
        its class more; the box that a fused one overlaps most is always in.
    """
    of = [np.flatnonzero(sources == i) for i in range(len(weights))]
    lists = [[values[rows].tolist() for rows in of] for values in (boxes, scores, classes)]
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


def non_maximum_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    sources: np.ndarray,
    weights: np.ndarray,
    iou: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of boxes that overlap by more than ``iou`` the one with the highest score stays.

    Scores are first multiplied by the detector's weight, the largest weight counting as 1.
    Arguments and results as for :func:`weighted_boxes_fusion`.
    """
    return _suppressed(3, boxes, scores * (weights / weights.max())[sources], classes, iou)


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    sources: np.ndarray,
    weights: np.ndarray,
    iou: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`non_maximum_suppression`, but the score s of the others becomes s · (1 − IoU).

    "Soft-NMS: Improving Object Detection With One Line of Code" (Bodla et al., ICCV 2017),
    equation 3, the linear one.
    """
    return _suppressed(1, boxes, scores * (weights / weights.max())[sources], classes, iou)


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
    """Combine the detections of several detectors on the same pictures.

    Args:
        truth: for the sizes of the pictures.
        detections: of each detector; with masks all or none of them. Boxes end at the picture's
            edge; those without area in it are left out.
        method: a name in :data:`ENSEMBLE_METHODS`. With "wbf", the mask of a box is where the mean
            of its boxes' masks, weighted by score and weight, is at least 0.5. With the others a
            box keeps its own.
        iou: boxes of a class that overlap by more are one object's.
        weights: above 0, of each detector. None: 1 each.
        min_score: detections of no higher score are left out.
        max_dets: the best so many of each picture are kept. None: all.
        names: of the detectors, for errors.

    Returns:
        By ascending picture and falling score.

    Raises:
        ValueError: an argument out of bounds, scores that are not within [0, 1], or some have masks
            and others none.
        ImportError: ensemble-boxes is not installed.
    """
    names = names or [f"Result {i + 1} of {len(detections)}" for i in range(len(detections))]
    weights = np.array([1.0] * len(detections) if weights is None else weights, np.float64)
    _check(detections, names, method, iou, weights)
    load_ensemble_boxes()
    sources = np.repeat(np.arange(len(detections)), list(map(len, detections)))
    merged = Detections.concatenate(detections)
    sizes = truth.image_sizes[find(merged.image_ids, truth.image_ids)].astype(np.float64)
    boxes = _in_parts(merged.boxes, sizes)
    usable = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (merged.scores > min_score)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(merged.image_ids[rows], kind="stable")]
    if not len(rows):
        return merged.select(rows)
    starts = np.flatnonzero(np.diff(merged.image_ids[rows], prepend=-1))
    parts = []
    for of_picture in tqdm(np.split(rows, starts[1:]), "Combining", unit="picture", disable=None):
        columns = boxes, merged.scores.astype(np.float64), merged.category_ids, sources
        fused, scores, classes, shares = ENSEMBLE_METHODS[method](
            *(column[of_picture] for column in columns), weights, iou
        )
        best = np.argsort(-scores, kind="stable")[:max_dets]
        masks = None
        if merged.masks is not None:
            rles = merged.masks.rles(of_picture)
            masks = Masks.from_rles([_mean_mask(rles, share) for share in shares[best]])
        size = np.tile(sizes[of_picture[0], ::-1], 2)
        xyxy = fused[best] * size
        parts.append(
            Detections(
                np.full(len(best), merged.image_ids[of_picture[0]]),
                classes[best],
                scores[best],
                np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1),
                masks,
            )
        )
    return Detections.concatenate(parts)


def _check(
    detections: Sequence[Detections],
    names: Sequence[str],
    method: str,
    iou: float,
    weights: np.ndarray,
) -> None:
    if method not in ENSEMBLE_METHODS:
        raise ValueError(f"The methods are {', '.join(ENSEMBLE_METHODS)}, not {method}.")
    if not 0 < iou < 1:
        raise ValueError(f"The IoU lies in (0, 1): {iou} does not.")
    if weights.shape != (len(detections),) or not (weights > 0).all():
        raise ValueError(
            f"There are {len(detections)} results to combine: give as many weights, above 0 each, "
            f"not {weights.tolist()}."
        )
    pairs = [(name, part) for name, part in zip(names, detections, strict=True) if len(part)]
    for name, part in pairs:
        if not (part.scores.min() >= 0 and part.scores.max() <= 1):
            raise ValueError(
                f"{name} has scores from {part.scores.min():g} to {part.scores.max():g}: only "
                "those within [0, 1] can be combined with others."
            )
    masks = {part.masks is not None: name for name, part in pairs}
    if len(masks) > 1:
        raise ValueError(
            f"{masks[True]} has masks, and {masks[False]} has none: combine the boxes alone."
        )


def _in_parts(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """XYXY in parts of the picture, within it, of XYWH in pixels."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return (corners / np.tile(sizes[:, ::-1], 2)).clip(0, 1)


def _ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B), of XYXY."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def _suppressed(
    method: int, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The boxes of each class that a method of ensemble-boxes keeps, each with its own mask."""
    load_ensemble_boxes()
    # The package's nms and soft_nms say neither which boxes they keep nor the new scores.
    from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float

    kept, kept_scores = [], []
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        left = scores[rows]  # is written into, and ordered as the boxes are
        places = cpu_soft_nms_float(boxes[rows], left, Nt=iou, sigma=0.0, thresh=0.0, method=method)
        kept.append(rows[places])
        kept_scores.append(left[left > 0])
    rows = np.concatenate(kept)
    shares = np.zeros((len(rows), len(boxes)))
    shares[np.arange(len(rows)), rows] = 1
    return boxes[rows], np.concatenate(kept_scores), classes[rows], shares


def _mean_mask(rles: list[dict], shares: np.ndarray) -> dict:
    """Where the mean of the masks, weighted by their shares, is at least 0.5."""
    members = np.flatnonzero(shares)
    shares = shares[members] / shares[members].sum()
    largest = shares.argmax()
    if shares[largest] > 0.5:  # decides alone
        return rles[members[largest]]
    of_members = [rles[i] for i in members]
    left, top, width, height = mask_util.toBbox(mask_util.merge(of_members)).astype(int)
    rows, columns = slice(top, top + height), slice(left, left + width)
    masks = mask_util.decode(of_members)
    mean = np.tensordot(masks[rows, columns], shares, 1)
    result = np.zeros(masks.shape[:2], np.uint8, order="F")
    result[rows, columns] = mean >= 0.5 - 1e-9
    return mask_util.encode(result)
