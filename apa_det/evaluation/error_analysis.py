"""The errors of a detector for the report: types, confusions, score curves, false positives."""

import math
from dataclasses import dataclass

from .confusions import Confusion, find_confusions
from .detections import Detections
from .error_types import ErrorTypes, find_errors, summarize_errors
from .false_positives import FalsePositive, worst_false_positives
from .ground_truth import GroundTruth
from .result import Evaluation
from .score_curves import ScoreCurves, curves_by_score


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """The errors of one file for one IoU type; fractions.

    Attributes:
        types: the types of errors, and what each costs.
        curves: precision, recall and F1 by score; None if :func:`curves_by_score` has none.
        false_positives: those with the highest scores of each group.
        confusions: of boxes; empty for masks.
    """

    types: ErrorTypes
    curves: ScoreCurves | None
    false_positives: list[FalsePositive]
    confusions: list[Confusion]

    @property
    def groups(self) -> tuple[str | None, ...]:
        """The frequency groups by name, after None for all categories."""
        return None, *self.types.ground_truth.groups.names

    def summary(self) -> dict:
        """Return error types, thresholds and false positives as a JSON-serializable dict.

        In percent; None if undefined.
        """
        truth = self.types.ground_truth
        result = {
            "error_types": {
                group or "all": {
                    name: {"dAP50": _percent(gain), "count": counts[name]}
                    for name, gain in self.types.dap(group).items()
                }
                for group in self.groups
                if (counts := self.types.count(group))
            },
            "false_positives": [_summary(found, truth) for found in self.false_positives],
        }
        if self.curves:
            thresholds = self.curves.thresholds
            result["confidence_threshold"] = thresholds.text()
            result["best_f1"] = {
                name: {
                    "threshold": None if math.isnan(t.value) else t.value,
                    "F1": _percent(t.f1),
                    "precision": _percent(t.precision),
                    "recall": _percent(t.recall),
                    "objects": t.num_objects,
                }
                for name, t in thresholds.groups.items()
            }
        return result


def analyze_errors(evaluation: Evaluation, detections: Detections) -> ErrorAnalysis:
    """Find the errors of an evaluation.

    Args:
        evaluation: that of ``detections``, made with ``matches=True``, for "bbox" or "segm".
        detections: the detections.
    """
    truth, errors = evaluation.ground_truth, find_errors(evaluation, detections)
    confused = []
    if evaluation.iou_type == "bbox":
        confused = find_confusions(truth, detections, max_dets=evaluation.max_dets)
    return ErrorAnalysis(
        summarize_errors(evaluation, errors),
        curves_by_score(evaluation),
        worst_false_positives(evaluation, errors, detections),
        confused,
    )


def _summary(found: FalsePositive, truth: GroundTruth) -> dict:
    result = {
        "image_id": found.record["id"],
        "category": truth.category_names[found.category],
        "score": found.score,
        "bbox": list(found.box),
        "error": found.error,
    }
    if found.annotation >= 0:
        category = truth.annotation_categories[found.annotation]
        result["annotation_id"] = int(truth.annotation_ids[found.annotation])
        result["annotated_category"] = truth.category_names[category]
        result["iou"] = found.iou
    return result


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value
