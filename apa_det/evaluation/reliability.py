"""How often detections of a given score are right."""

from dataclasses import dataclass

import numpy as np

from .result import Evaluation

__all__ = ["Calibration", "calibrate"]

NUM_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Detections of one frequency group, binned by score into tenths of [0, 1].

    Those that the metric leaves out are not among them: of categories of which nothing is known in
    their picture, for example.
    """

    counts: np.ndarray  # (10,) detections
    mean_scores: np.ndarray  # (10,), NaN where there is none
    precisions: np.ndarray  # (10,) the part that is right at IoU 0.5, NaN where there is none


def calibrate(evaluation: Evaluation) -> dict[str, Calibration]:
    """
    Bin detections by score, for a reliability diagram of each frequency group.

    Args:
        evaluation: made with ``matches=True``.

    Returns:
        By the name of the group. Empty without detections, or where scores are not within [0, 1].
    """
    matches, truth = evaluation.matches, evaluation.ground_truth
    judged = matches.outcomes[:, 0] != 2
    scores = evaluation.scores[judged].astype(np.float64)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return {}
    right = matches.outcomes[judged, 0] == 1
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    categories = evaluation.match_categories[judged]
    # Of each group one row of bins, and one more of the categories in no group.
    cells = truth.category_groups[categories] * NUM_BINS + bins
    cells[cells < 0] += (len(truth.groups.names) + 1) * NUM_BINS

    def summed(weights: np.ndarray | None) -> np.ndarray:
        size = (len(truth.groups.names) + 1) * NUM_BINS
        return np.bincount(cells, weights, size).reshape(-1, NUM_BINS)

    counts, score_sums, right_sums = summed(None), summed(scores), summed(right)
    with np.errstate(invalid="ignore"):
        mean_scores, precisions = score_sums / counts, right_sums / counts
    return {
        name: Calibration(counts[i], mean_scores[i], precisions[i])
        for i, name in enumerate(truth.groups.names)
    }
