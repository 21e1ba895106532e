"""The false positives with the highest scores."""

from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from .detections import Detections
from .error_types import BOX_ERRORS, MASK_ERRORS, NO_ERROR, DetectionErrors
from .result import Evaluation

_CANDIDATES = 1000  # per group
_KIND_NAMES = {kind: name for name, kind in (BOX_ERRORS | MASK_ERRORS).items()}


@dataclass(frozen=True)
class FalsePositive:
    """A false positive.

    Attributes:
        record: the image's entry in the dataset file.
        category: the index of its category in ``GroundTruth.category_ids``.
        score: its score.
        box: its box, XYWH in pixels.
        error: type of error, see :func:`apa_det.evaluation.find_errors`.
        annotation: the annotation that the error is about, or -1.
        iou: the IoU with it, or 0.
    """

    record: dict
    category: int
    score: float
    box: tuple[float, float, float, float]
    error: str
    annotation: int
    iou: float


def worst_false_positives(
    evaluation: Evaluation,
    errors: DetectionErrors,
    detections: Detections,
    num_per_group: int = 4,
) -> list[FalsePositive]:
    """Return the false positives with the highest scores of each frequency group.

    Where possible, each is of another category and in another image.

    Args:
        evaluation: that of ``detections``, made with ``matches=True``.
        errors: the errors of its detections.
        detections: the detections; without boxes, those of the masks are returned.
        num_per_group: how many to return of each group, at most.

    Returns:
        The false positives by group, in the order of ``FrequencyGroups.names``; in each the highest
        score first. Categories without a group are left out.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    wrong = np.flatnonzero(errors.kinds != NO_ERROR)
    groups = truth.category_groups[evaluation.match_categories[wrong]]
    found = []
    for group in range(len(truth.groups.names)):
        rows = wrong[groups == group]
        rows = rows[np.argsort(-evaluation.scores[rows], kind="stable")[:_CANDIDATES]]
        keys = zip(
            evaluation.match_categories[rows].tolist(),
            evaluation.match_images[rows].tolist(),
            strict=True,
        )
        for i in sorted(_varied(list(keys), num_per_group)):
            row = rows[i]
            found.append(
                FalsePositive(
                    truth.images[evaluation.match_images[row]],
                    int(evaluation.match_categories[row]),
                    float(evaluation.scores[row]),
                    _box(detections, matches.detections[row]),
                    _KIND_NAMES[int(errors.kinds[row])],
                    int(errors.annotations[row]),
                    float(errors.ious[row]),
                )
            )
    return found


def _box(detections: Detections, row: int) -> tuple[float, float, float, float]:
    if detections.boxes is None:
        return tuple(mask_util.toBbox(detections.masks.rles(slice(row, row + 1)))[0].tolist())
    return tuple(detections.boxes[row].tolist())


def _varied(keys: list[tuple[int, int]], number: int) -> list[int]:
    """Return indices of pairs: first of those that share no value, then of the others."""
    chosen: list[int] = []
    seen: list[set[int]] = [set(), set()]
    for i, key in enumerate(keys):
        if len(chosen) == number:
            return chosen
        if not any(value in values for value, values in zip(key, seen, strict=True)):
            chosen.append(i)
            for value, values in zip(key, seen, strict=True):
                values.add(value)
    rest = [i for i in range(len(keys)) if i not in set(chosen)]
    return chosen + rest[: number - len(chosen)]
