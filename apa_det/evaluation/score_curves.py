"""Precision, recall and F1 above each score, by frequency group."""

from dataclasses import dataclass

import numpy as np

from .result import IGNORED, TRUE_POSITIVE, Evaluation
from .score_thresholds import ThresholdFit, choose_thresholds

_SCORES = np.unique(np.concatenate([np.linspace(0, 1, 201), np.logspace(-4, 0, 161)]).round(6))


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """Detections of one frequency group whose scores reach a threshold, at IoU 0.5.

    Attributes:
        scores: (S,) ascending thresholds in [0, 1].
        precision: (S,) as fractions; NaN without detections.
        recall: (S,) as fractions; NaN without objects.
        f1: (S,) 2 TP / (detections + objects); NaN without either.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


@dataclass(frozen=True, eq=False)
class ScoreCurves:
    """Curves of the frequency groups, and the thresholds with the highest F1.

    Attributes:
        groups: by group name.
        thresholds: chosen by :func:`apa_det.evaluation.score_thresholds.choose_thresholds`.
    """

    groups: dict[str, ScoreCurve]
    thresholds: ThresholdFit


def curves_by_score(evaluation: Evaluation) -> ScoreCurves | None:
    """Compute precision, recall and F1 of each frequency group against the score threshold.

    The classes of a group are counted together. A detection is a true positive if it is one for AP
    at IoU 0.5; detections that the metric ignores do not count.

    Args:
        evaluation: made with ``matches=True``.

    Returns:
        None without a true positive of a score above 0, or if a score is outside [0, 1].
    """
    truth, outcomes = evaluation.ground_truth, evaluation.matches.outcomes[:, 0]
    judged = outcomes != IGNORED
    scores, correct = evaluation.scores[judged], outcomes[judged] == TRUE_POSITIVE
    if not (scores[correct] > 0).any() or scores.min() < 0 or scores.max() > 1:
        return None
    groups = truth.category_groups[evaluation.match_categories[judged]]
    annotated = truth.category_groups[truth.annotation_categories[truth.counted]]
    reached = np.searchsorted(_SCORES, scores.astype(np.float64), side="right") - 1

    def above(rows: np.ndarray) -> np.ndarray:
        counts = np.bincount(reached[rows], minlength=len(_SCORES))
        return np.cumsum(counts[::-1])[::-1].astype(np.float64)

    curves = {}
    for i, name in enumerate(truth.groups.names):
        detections, hits = above(groups == i), above((groups == i) & correct)
        objects = np.count_nonzero(annotated == i)
        with np.errstate(invalid="ignore", divide="ignore"):
            curves[name] = ScoreCurve(
                _SCORES, hits / detections, hits / objects, 2 * hits / (detections + objects)
            )
    return ScoreCurves(curves, choose_thresholds(evaluation))
