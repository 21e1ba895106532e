"""Precision of detections by score, for reliability diagrams."""

from dataclasses import dataclass

import numpy as np

from .result import IGNORED, TRUE_POSITIVE, Evaluation

NUM_BINS = 10


@dataclass(frozen=True)
class ReliabilityBins:
    """The detections of one frequency group in 10 equal score bins over [0, 1].

    Detections that the metric ignores are left out, for example those of categories that are not
    verified in the image.
    """

    counts: np.ndarray  # (10,) number of detections
    mean_scores: np.ndarray  # (10,), NaN for an empty bin
    precisions: np.ndarray  # (10,) fraction of true positives at IoU 0.5, NaN for an empty bin


def reliability_bins(evaluation: Evaluation) -> dict[str, ReliabilityBins]:
    """Bin the detections of each frequency group by score, given an evaluation with ``matches``.

    Returns:
        A dict from group name to bins; empty if there are no detections, or scores outside [0, 1].
    """
    matches, truth = evaluation.matches, evaluation.ground_truth
    judged = matches.outcomes[:, 0] != IGNORED
    scores = evaluation.scores[judged].astype(np.float64)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return {}
    correct = matches.outcomes[judged, 0] == TRUE_POSITIVE
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    categories = evaluation.match_categories[judged]
    # One row of bins per group, and a last row for categories without a group (-1).
    size = (len(truth.groups.names) + 1) * NUM_BINS
    cells = (truth.category_groups[categories] * NUM_BINS + bins) % size

    def summed(weights: np.ndarray | None) -> np.ndarray:
        return np.bincount(cells, weights, size).reshape(-1, NUM_BINS)

    counts, score_sums, correct_sums = summed(None), summed(scores), summed(correct)
    with np.errstate(invalid="ignore"):
        mean_scores, precisions = score_sums / counts, correct_sums / counts
    return {
        name: ReliabilityBins(counts[i], mean_scores[i], precisions[i])
        for i, name in enumerate(truth.groups.names)
    }
