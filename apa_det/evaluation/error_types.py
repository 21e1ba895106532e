"""Types of detection errors, and the AP that each of them costs."""

from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .ground_truth import GroundTruth
from .overlaps import Pairs, box_pairs, mask_pairs
from .result import FALSE_POSITIVE, RECALL_THRESHOLDS, TRUE_POSITIVE, Evaluation

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
NO_ERROR, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, OTHER = range(7)
BOX_ERRORS = {
    "class": CLASS,
    "location": LOCATION,
    "both": BOTH,
    "duplicate": DUPLICATE,
    "background": BACKGROUND,
}
MASK_ERRORS = {"location": LOCATION, "duplicate": DUPLICATE, "other": OTHER}
MISSED, FALSE_POSITIVES, FALSE_NEGATIVES = "missed", "false positives", "false negatives"


@dataclass(frozen=True, eq=False)
class DetectionErrors:
    """The error of each detection, and the missed objects, at IoU 0.5.

    Attributes:
        kinds: (M,) uint8 for the detections of ``Evaluation.matches``: ``CLASS``, ``LOCATION``,
            ``BOTH``, ``DUPLICATE``, ``BACKGROUND``, ``OTHER``, or ``NO_ERROR`` for true positives
            and for detections that the metric ignores.
        annotations: (M,) int64, the annotation that an error is about, the one with the highest
            IoU; -1 for background, other and no errors.
        ious: (M,) float64, the IoU with it, or 0.
        missed: (G,) bool, counted annotations that are not matched, and that no class or location
            error is about.
    """

    kinds: np.ndarray
    annotations: np.ndarray
    ious: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True, eq=False)
class ErrorTypes:
    """The errors of a detector by type and category, and the AP that each type costs.

    Types are class, location, both, duplicate, background and missed; for masks location,
    duplicate, other and missed. The two totals "false positives" and "false negatives" come last.

    Attributes:
        ground_truth: the ground truth.
        counts: by type: (K,) int64, false positives of each category; for "missed" and
            "false negatives" annotations.
        ap50: (K,) float64, AP at IoU 0.5; NaN without ground truth.
        fixed_ap50: by type: (K,) float64, the AP without its errors.
    """

    ground_truth: GroundTruth
    counts: dict[str, np.ndarray]
    ap50: np.ndarray
    fixed_ap50: dict[str, np.ndarray]

    def dap(self, group: str | None = None) -> dict[str, float]:
        """Return what fixing all errors of each type adds to AP50, as a fraction.

        Each type is fixed alone, so the values do not add up to 1 - AP50. A loss by the rounding of
        the 101 recalls is set to 0. NaN without ground truth.

        Args:
            group: name of a frequency group. None: all categories.
        """
        rows = self._rows(group) & ~np.isnan(self.ap50)
        if not rows.any():
            return dict.fromkeys(self.fixed_ap50, float("nan"))
        base = self.ap50[rows].mean()
        return {n: max(float(v[rows].mean() - base), 0.0) for n, v in self.fixed_ap50.items()}

    def count(self, group: str | None = None) -> dict[str, int]:
        """Return the number of errors of each type, by the category of the detection."""
        rows = self._rows(group)
        return {name: int(values[rows].sum()) for name, values in self.counts.items()}

    def _rows(self, group: str | None) -> np.ndarray:
        truth = self.ground_truth
        if group is None:
            return np.ones(len(truth.category_ids), bool)
        return truth.category_groups == truth.groups.names.index(group)


def find_errors(evaluation: Evaluation, detections: Detections) -> DetectionErrors:
    """Find the type of each false positive as TIDE does (Bolya et al., ECCV 2020).

    The first of these that holds, with IoUs over the counted annotations of the image:

    - location: the highest IoU with an annotation of the same category is from 0.1 to 0.5;
    - class: the IoU with an annotation of another category is at least 0.5;
    - duplicate: the IoU with an annotation of the same category is above 0.5, so it is matched
      already;
    - background: no IoU is above 0.1;
    - both: the rest.

    Detections that the metric ignores are not errors: of a category that is not verified in the
    image, of one with annotations that may be incomplete, or matched to an ignored annotation.
    ``tidecv`` takes them for class errors where they cover an object of another category.

    Masks are only compared with masks of the same category: what is neither location nor duplicate
    is other.

    Args:
        evaluation: that of ``detections``, made with ``matches=True``, for "bbox" or "segm".
        detections: the detections.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    counted = np.flatnonzero(truth.counted)
    rows = np.flatnonzero(matches.outcomes[:, 0] == FALSE_POSITIVE)
    images, categories = evaluation.match_images[rows], evaluation.match_categories[rows]
    if evaluation.iou_type == "bbox":
        boxes = detections.boxes[matches.detections[rows]]
        blocks = box_pairs(truth, counted, boxes, images, BACKGROUND_IOU)
        kinds = np.full(len(rows), BACKGROUND, np.uint8)
    elif evaluation.iou_type == "segm":
        chosen = matches.detections[rows]
        blocks = [mask_pairs(truth, counted, detections.masks, chosen, images, categories)]
        kinds = np.full(len(rows), OTHER, np.uint8)
    else:
        raise ValueError(f"Error types need iou_type bbox or segm, got {evaluation.iou_type!r}.")
    annotations, ious = np.full(len(rows), -1), np.zeros(len(rows))

    def assign(kind: int, pairs: Pairs) -> None:
        kinds[pairs.rows], ious[pairs.rows] = kind, pairs.ious
        annotations[pairs.rows] = pairs.annotations

    for pairs in blocks:  # later assignments replace earlier ones
        same = truth.annotation_categories[pairs.annotations] == categories[pairs.rows]
        own, others = pairs.take(same).highest(), pairs.take(~same).highest()
        assign(BOTH, others.take(others.ious > BACKGROUND_IOU))
        assign(DUPLICATE, own.take(own.ious > FOREGROUND_IOU))
        assign(CLASS, others.take(others.ious >= FOREGROUND_IOU))
        near = (own.ious >= BACKGROUND_IOU) & (own.ious <= FOREGROUND_IOU)
        assign(LOCATION, own.take(near))
    size = len(matches.detections)
    result = DetectionErrors(
        np.zeros(size, np.uint8),
        np.full(size, -1),
        np.zeros(size),
        truth.counted & ~matches.matched,
    )
    result.kinds[rows], result.annotations[rows], result.ious[rows] = kinds, annotations, ious
    result.missed[result.annotations[np.isin(result.kinds, (CLASS, LOCATION))]] = False
    return result


def summarize_errors(evaluation: Evaluation, errors: DetectionErrors) -> ErrorTypes:
    """Compute what each type of error costs, as TIDE does (Bolya et al., ECCV 2020).

    AP is at IoU 0.5. Each type is fixed alone. Class and location errors about an object that is
    not matched: the one with the highest score becomes a true positive of the object's category,
    the others are removed. Those about a matched object, and duplicate, both, background and other
    errors, are removed. Missed objects are removed. "False positives" removes all of them, and
    "false negatives" removes all objects without a match. A category that loses all objects so has
    AP 0.

    Args:
        evaluation: made with ``matches=True``, for "bbox" or "segm".
        errors: the errors of its detections.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    size = len(truth.category_ids)
    judged = np.flatnonzero((matches.outcomes[:, 0] == TRUE_POSITIVE) | (errors.kinds != NO_ERROR))
    scores, categories = evaluation.scores[judged], evaluation.match_categories[judged]
    kinds, targets = errors.kinds[judged], errors.annotations[judged]
    correct = kinds == NO_ERROR
    order = _ranking(scores, categories)
    unmatched = truth.counted & ~matches.matched

    def per_category(annotations: np.ndarray) -> np.ndarray:
        return np.bincount(truth.annotation_categories[annotations], minlength=size)

    objects = per_category(truth.counted)

    def ap50(
        kept: np.ndarray, positive: np.ndarray = correct, objects: np.ndarray = objects
    ) -> np.ndarray:
        ranked = order[kept[order]]
        return _average_precisions(categories[ranked], positive[ranked], objects)

    fixable = np.isin(kinds, (CLASS, LOCATION))
    fixable[fixable] = unmatched[targets[fixable]]
    fixed = _best_per_target(scores, targets, np.flatnonzero(fixable))
    everything = np.ones(len(judged), bool)
    base = ap50(everything)
    names = BOX_ERRORS if evaluation.iou_type == "bbox" else MASK_ERRORS
    counts, aps = {}, {}
    for name, kind in names.items():
        is_kind = kinds == kind
        counts[name] = np.bincount(categories[is_kind], minlength=size)
        corrected = fixed[is_kind[fixed]]
        kept, positive = ~is_kind, correct.copy()
        kept[corrected] = positive[corrected] = True
        if kind == CLASS:
            moved = categories.copy()
            moved[corrected] = truth.annotation_categories[targets[corrected]]
            ranked = np.flatnonzero(kept)
            ranked = ranked[_ranking(scores[ranked], moved[ranked])]
            aps[name] = _average_precisions(moved[ranked], positive[ranked], objects)
        else:
            aps[name] = ap50(kept, positive)
    counts |= {
        MISSED: per_category(errors.missed),
        FALSE_POSITIVES: np.bincount(categories[~correct], minlength=size),
        FALSE_NEGATIVES: per_category(unmatched),
    }
    aps |= {
        MISSED: ap50(everything, objects=objects - counts[MISSED]),
        FALSE_POSITIVES: ap50(correct),
        FALSE_NEGATIVES: ap50(everything, objects=objects - counts[FALSE_NEGATIVES]),
    }
    evaluated = objects > 0
    return ErrorTypes(
        truth,
        counts,
        np.where(evaluated, base, np.nan),
        {name: np.where(evaluated, values, np.nan) for name, values in aps.items()},
    )


def _ranking(scores: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Return the order by category and descending score; equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")
    return order[np.argsort(categories[order], kind="stable")]


def _best_per_target(scores: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the row with the highest score for each target."""
    rows = rows[np.lexsort((-scores[rows], targets[rows]))]
    return rows[np.diff(targets[rows], prepend=-1) > 0]


def _average_precisions(
    categories: np.ndarray, positive: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Return (K,) AP over 101 recalls of ranked detections, 0 for a category without objects.

    Args:
        categories: (N,) int64, ascending; in descending score for each category.
        positive: (N,) bool, true positives.
        objects: (K,) number of objects.
    """
    aps = np.zeros(len(objects))
    starts = np.searchsorted(categories, np.arange(len(objects)))
    hits = np.flatnonzero(positive)  # precision is highest at true positives
    of_category = categories[hits]
    ranks = hits - starts[of_category] + 1
    bounds = np.searchsorted(of_category, np.arange(len(objects) + 1))
    for k in np.flatnonzero((np.diff(bounds) > 0) & (objects > 0)).tolist():
        count = np.arange(1, bounds[k + 1] - bounds[k] + 1)
        precision = count / ranks[bounds[k] : bounds[k + 1]]
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        indices = np.searchsorted(count / objects[k], RECALL_THRESHOLDS, side="left")
        aps[k] = np.append(precision, 0.0)[indices].mean()
    return aps
