"""The images with the most missed objects, and a detector's results on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detections import Detections
from .result import IGNORED, Evaluation

_MIN_KEPT, _MAX_KEPT = 5, 30  # detections per image


@dataclass(frozen=True)
class ImageResults:
    """One detector's results on one image."""

    record: dict  # the image's entry in the dataset file
    annotations: np.ndarray  # (n,) indices of the ground truth's annotations
    matched: np.ndarray  # (n,) bool: a detection matches the annotation at IoU 0.5
    detections: Detections  # the m with the highest scores: m = n, at least 5 and at most 30
    outcomes: np.ndarray  # (m,) TRUE_POSITIVE, FALSE_POSITIVE or IGNORED at IoU 0.5


def worst_images(evaluation: Evaluation, num_images: int) -> np.ndarray:
    """Return the images with the most annotations that no detection matches at IoU 0.5.

    Args:
        evaluation: made with ``matches=True``.
        num_images: how many to return, at most; images without misses are left out.

    Returns:
        Indices of the ground truth's images, the worst first; ties go to the image with fewer
        annotations.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    size = len(truth.image_ids)
    annotations = np.bincount(truth.annotation_images[truth.counted], minlength=size)
    missed = np.bincount(truth.annotation_images[truth.counted & ~matches.matched], minlength=size)
    order = np.lexsort((annotations, -missed))[:num_images]
    return order[missed[order] > 0]


def image_results(
    evaluation: Evaluation, detections: Detections, indices: Sequence[int]
) -> list[ImageResults]:
    """Return a detector's results on the ground truth's images of these indices.

    ``evaluation`` is that of ``detections``, made with ``matches=True``.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    results = []
    for index in indices:
        annotations = np.flatnonzero((truth.annotation_images == index) & truth.counted)
        rows = np.flatnonzero(detections.image_ids == truth.image_ids[index])
        keep = min(max(len(annotations), _MIN_KEPT), _MAX_KEPT)
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")[:keep]]
        outcomes = np.full(len(rows), IGNORED, np.int64)
        for i, row in enumerate(rows):
            match = np.flatnonzero(matches.detections == row)
            if len(match):
                outcomes[i] = matches.outcomes[match[0], 0]
        record, matched = truth.images[index], matches.matched[annotations]
        kept = detections.select(rows)
        results.append(ImageResults(record, annotations, matched, kept, outcomes))
    return results
