"""Calibrate a result file of any detector with binary class scores."""

import os
from dataclasses import replace

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ...data.fractal_dimension import ClassBoxes, read_class_boxes
from ...errors import UserError
from ...evaluation import Detections, GroundTruth, read_results
from ...modeling import CALIBRATION_REGISTRY, Calibration
from ...text import listed

_ROWS = 1024


def calibrate_results(
    results: str | os.PathLike,
    gt: str | os.PathLike,
    count_from: str | os.PathLike,
    method: str,
    strength: float,
) -> Detections:
    """Calibrate the scores of a result file.

    A result file has one score per detection. That is enough for binary scores (sigmoid, Gumbel,
    APA), whose calibration needs no other class. A softmax would have to be normalized again over
    the scores of all classes, which the file does not contain.

    Args:
        results: a result file, see :func:`apa_det.evaluation.read_results`.
        gt: its ground truth, in LVIS or COCO format.
        count_from: the training set of the detector, in LVIS or COCO format. Its classes have the
            names of those of ``gt``; their ids may differ.
        method: a name in ``CALIBRATION_REGISTRY`` of a calibration by the training set.
        strength: see :class:`apa_det.modeling.Calibration`.

    Returns:
        The detections with calibrated scores, in the order of the file.

    Raises:
        UserError: an argument or a file is invalid, the method needs the classifier, the ground
            truth has categories that the training set does not have, or a score is outside [0, 1].
    """
    usable = sorted(name for name, kind in CALIBRATION_REGISTRY if kind.needs_counts)
    if method not in usable:
        raise UserError(
            f"For result files, the method must be one of {', '.join(usable)}; got {method!r}."
        )
    calibration = CALIBRATION_REGISTRY.get(method)(strength)
    boxes = read_class_boxes(count_from)
    truth = GroundTruth.from_file(gt)
    index = {name: i for i, name in enumerate(boxes.categories.values())}
    unknown = [name for name in truth.category_names if name not in index]
    if unknown:
        raise UserError(
            f"{gt} has the categories {listed(unknown)}, but {count_from} does not. Give the "
            "training set of the detector."
        )
    detections = read_results(results, truth)
    scores = detections.scores
    if not ((scores >= 0) & (scores <= 1)).all():
        raise UserError(
            f"Scores must be in [0, 1] to be calibrated, but {results} has scores from "
            f"{scores.min():g} to {scores.max():g}."
        )
    if not strength:
        return detections
    by_category = np.array([index[name] for name in truth.category_names])
    classes = by_category[np.searchsorted(truth.category_ids, detections.category_ids)]
    values = _class_values(calibration, boxes, os.fspath(count_from))
    return replace(detections, scores=_calibrated(calibration, scores, classes, values))


def _class_values(calibration: Calibration, boxes: ClassBoxes, json_file: str) -> Tensor:
    """Return the class values of a training set, which is registered only for this call."""
    name = f"apa_det.calibrate_results {json_file}"
    counts = [{"id": i, "image_count": n} for i, n in enumerate(boxes.image_counts.tolist(), 1)]
    MetadataCatalog.get(name).set(
        json_file=json_file,
        class_image_count=counts,
        thing_dataset_id_to_contiguous_id={i: k for k, i in enumerate(boxes.categories)},
    )
    try:
        return calibration.class_values([name])
    finally:
        MetadataCatalog.remove(name)


def _calibrated(
    calibration: Calibration, scores: np.ndarray, classes: np.ndarray, values: Tensor
) -> np.ndarray:
    """Return the calibrated scores, as float64, given (N,) class indices."""
    order = np.argsort(classes, kind="stable")
    classes = classes[order]
    row = np.arange(len(order)) - np.searchsorted(classes, classes)  # within its class
    result = np.empty(len(scores))
    for start in range(0, int(row.max(initial=-1)) + 1, _ROWS):
        part = (row >= start) & (row < start + _ROWS)
        at = row[part] - start, classes[part]
        log_odds = torch.zeros(_ROWS, len(values) + 1)
        log_odds[at] = torch.from_numpy(scores[order[part]]).double().logit().float()
        calibrated = calibration.binary_log_odds(log_odds, values)[at]
        result[order[part]] = calibrated.double().sigmoid().numpy()
    return result
