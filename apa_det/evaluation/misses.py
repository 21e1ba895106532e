"""The pictures in which a detector misses the most, and what it finds there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .result import Evaluation

__all__ = ["PictureResults", "picture_results", "worst_pictures"]

_LEAST, _MOST = 5, 30  # detections of a picture that are kept


@dataclass(frozen=True)
class PictureResults:
    """What one detector finds in one picture."""

    image: dict  # the dataset's record
    annotations: np.ndarray  # (n,) places in the ground truth's annotations
    found: np.ndarray  # (n,) bool, whether a detection matches it at IoU 0.5
    detections: Detections  # m detections with the highest scores, as many as there are annotations
    outcomes: np.ndarray  # (m,) at IoU 0.5: 0 wrong, 1 right, 2 left out by the metric


def worst_pictures(evaluation: Evaluation, number: int) -> np.ndarray:
    """
    The pictures with the most annotations that no detection matches at IoU 0.5.

    Args:
        evaluation: made with ``matches=True``.
        number: how many.

    Returns:
        At most ``number`` places in the ground truth's pictures, the worst first. Of equals the one
        with fewer annotations is worse.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    size = len(truth.image_ids)
    annotations = np.bincount(truth.annotation_images[truth.counted], minlength=size)
    missed = np.bincount(truth.annotation_images[truth.counted & ~matches.found], minlength=size)
    order = np.lexsort((annotations, -missed))[:number]
    return order[missed[order] > 0]


def picture_results(
    evaluation: Evaluation, detections: Detections, places: Sequence[int]
) -> list[PictureResults]:
    """
    What a detector finds in some pictures.

    Args:
        evaluation: made with ``matches=True``.
        detections: what was evaluated.
        places: places in the ground truth's pictures.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    results = []
    for place in places:
        annotations = np.flatnonzero((truth.annotation_images == place) & truth.counted)
        rows = np.flatnonzero(detections.image_ids == truth.image_ids[place])
        keep = min(max(len(annotations), _LEAST), _MOST)
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")[:keep]]
        outcomes = np.full(len(rows), 2, np.int64)
        for i, row in enumerate(rows):
            match = np.flatnonzero(matches.detections == row)
            if len(match):
                outcomes[i] = matches.outcomes[match[0], 0]
        results.append(
            PictureResults(
                image=truth.images[place],
                annotations=annotations,
                found=matches.found[annotations],
                detections=detections.select(rows),
                outcomes=outcomes,
            )
        )
    return results
