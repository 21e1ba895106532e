"""The strength of a calibration, fitted on a part of the training set."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ...data import ensure_metadata
from ...errors import UserError
from ...evaluation import Detections, GroundTruth, LongTailEvaluator, evaluate
from ...evaluation.predictions import detections_from_instances
from ...evaluation.side_by_side import format_number
from ...modeling import CALIBRATION_REGISTRY, APAFastRCNNOutputLayers
from ...utils.plotting import DPI, GREY, INK, grid, group_color
from ..job import Job
from ..testing import build_subset_loader, load_model

__all__ = ["STRENGTHS", "CalibrationFit", "fit_calibration", "score_strengths"]

logger = logging.getLogger(__name__)

STRENGTHS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class CalibrationFit:
    """Box AP at each strength of a calibration. Made by :func:`score_strengths`."""

    method: str
    strengths: tuple[float, ...]
    metrics: list[dict[str, float]]  # of each strength, in percent; AP and one for each group
    detections: list[float]  # of each strength, the mean number in a picture

    @property
    def best(self) -> float:
        """The strength of the highest AP, and of equals the smallest."""
        ap = [metrics["AP"] for metrics in self.metrics]
        return min(s for s, value in zip(self.strengths, ap, strict=True) if value == max(ap))

    def table(self) -> str:
        """A row for each strength; "–" where the pictures show nothing of a group."""
        rows = [
            [
                f"{strength:g}{' *' if strength == self.best else ''}",
                *(format_number(value, 2) for value in metrics.values()),
                f"{number:.1f}",
            ]
            for strength, metrics, number in zip(
                self.strengths, self.metrics, self.detections, strict=True
            )
        ]
        headers = [f"{self.method}", *self.metrics[0], "detections a picture"]
        align = ("left", *["right"] * (len(headers) - 1))
        return tabulate(rows, headers, colalign=align, disable_numparse=True)

    def advice(self) -> str:
        """What the table says, in one sentence."""
        if self.best == 0:
            return f"{self.method} raises AP at none of these strengths: leave it out."
        text = f"AP is highest at the strength {self.best:g}"
        if self.best == max(self.strengths):
            text += ", the largest that was tried: larger ones may be better"
        return f"{text}."

    def draw(self, path: str | os.PathLike) -> None:
        """Write a PNG of AP, and of that of each group, against the strength."""
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axis = figure.subplots()
        for i, name in enumerate(self.metrics[0]):
            values = [metrics[name] for metrics in self.metrics]
            style = dict(color=INK, linewidth=2.5) if i == 0 else dict(color=group_color(i - 1))
            axis.plot(self.strengths, values, marker="o", markersize=4, label=name, **style)
        axis.axvline(self.best, color=GREY, linestyle="--", linewidth=1)
        axis.set_xlabel(f"strength of {self.method}")
        axis.set_ylabel("box AP on training pictures, %")
        figure.legend(frameon=False, loc="outside right upper")
        grid(axis)
        figure.savefig(path, dpi=DPI)


def fit_calibration(
    job: Job, method: str, num_images: int = 500, strengths: Sequence[float] = STRENGTHS
) -> CalibrationFit:
    """Fit a calibration of a job's checkpoint on images of its first training set.

    Args:
        job: the job, set up for evaluation. Images are read as those of its test sets.
        method: a name in ``CALIBRATION_REGISTRY``.
        num_images: the number of images, chosen by :func:`apa_det.evaluation.choose_subset`, so
            that rare classes are among them.
        strengths: see :func:`score_strengths`.

    Raises:
        UserError: an argument is out of range, the training set or the checkpoint is missing or
            broken, or the model cannot be calibrated this way.
    """
    if num_images < 1 or min(strengths) < 0:
        raise UserError("The number of images must be >= 1, and the strengths must be >= 0.")
    if method not in CALIBRATION_REGISTRY:
        known = ", ".join(sorted(name for name, _ in CALIBRATION_REGISTRY))
        raise UserError(f"The method must be one of {known}; got {method}.")
    if not job.train_datasets:
        raise UserError(
            f"{job.KEYS['train_datasets']} is empty: a calibration is fitted on a training set."
        )
    job = job.with_calibration(method, 1.0)
    job.check(eval_only=True)
    name = job.train_datasets[0]
    for dataset in job.train_datasets:
        ensure_metadata(dataset)
    logger.info("Choosing %d images of %s", num_images, name)
    evaluator = LongTailEvaluator(name, groups=job.groups, subset=num_images, subset_only=True)
    model = load_model(job)
    loader = build_subset_loader(job, name, evaluator.subset.image_ids)
    return score_strengths(
        model, loader, evaluator.subset, evaluator.category_ids, method, strengths
    )


def score_strengths(
    model: nn.Module,
    loader: Iterable[list[dict]],
    truth: GroundTruth,
    category_ids: np.ndarray,
    method: str,
    strengths: Sequence[float] = STRENGTHS,
) -> CalibrationFit:
    """Evaluate a detector's boxes under a calibration of several strengths.

    The model runs once on each picture; its proposals are scored again for each strength, and go
    through the score threshold and the NMS of inference. The heads of a cascade are calibrated each
    and averaged.

    Args:
        model: a detector whose boxes :class:`APAFastRCNNOutputLayers` predicts, on any device, with
            its ``calibration_datasets``. It is left with the calibration that it came with, in eval
            mode.
        loader: a detectron2 test loader of the pictures.
        truth: the ground truth of these pictures.
        category_ids: (K,) the dataset's category id of each class of the model.
        method: a name in ``CALIBRATION_REGISTRY``.
        strengths: at least 0 each.

    Raises:
        ValueError: the model has no such predictor, or lacks the datasets.
    """
    predictors = [m for m in model.modules() if isinstance(m, APAFastRCNNOutputLayers)]
    if not predictors:
        raise UserError(
            "The model has no APAFastRCNNOutputLayers to calibrate: use APAROIHeads or "
            "APACascadeROIHeads."
        )
    calibrations = [CALIBRATION_REGISTRY.get(method)(strength) for strength in strengths]
    if calibrations[0].needs_counts and not all(p.calibration_datasets for p in predictors):
        raise UserError(
            f"{method} goes by the image counts of the training set: give the box predictors "
            "calibration_datasets."
        )
    found: list[list[Detections]] = [[] for _ in strengths]
    before = [predictor.calibration for predictor in predictors]
    model.eval()
    try:
        with _boxes_only(model), torch.no_grad():
            for pictures in tqdm(loader, "Scoring", unit="batch", disable=None):
                with _recorded(predictors) as calls:
                    model(pictures)
                for calibration, kept in zip(calibrations, found, strict=True):
                    for predictor in predictors:
                        predictor.calibration = calibration
                    for picture, instances in zip(pictures, _scored(calls), strict=True):
                        size = picture["height"], picture["width"]
                        instances = detector_postprocess(instances, *size)
                        kept.append(
                            detections_from_instances(instances, picture["image_id"], category_ids)
                        )
    finally:
        for predictor, calibration in zip(predictors, before, strict=True):
            predictor.calibration = calibration
    names = ("AP", *(f"AP{group}" for group in truth.groups.names))
    metrics = []
    for parts in tqdm(found, "Evaluating", unit="strength", disable=None):
        values = evaluate(truth, Detections.concatenate(parts), "bbox").metrics()
        metrics.append({name: 100 * values[name] for name in names})
    numbers = [sum(map(len, parts)) / max(len(parts), 1) for parts in found]
    return CalibrationFit(method, tuple(strengths), metrics, numbers)


@contextmanager
def _boxes_only(model: nn.Module) -> Iterator[None]:
    """Within, no RoI heads predict masks or keypoints."""
    switches = [
        (module, name)
        for module in model.modules()
        for name in ("mask_on", "keypoint_on")
        if getattr(module, name, False)
    ]
    for module, name in switches:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in switches:
            setattr(module, name, True)


@contextmanager
def _recorded(predictors: list[APAFastRCNNOutputLayers]) -> Iterator[list[tuple]]:
    """Within, a list of (predictor, predictions, proposals) of all that was to be scored."""
    calls = []

    def recording(predictor: APAFastRCNNOutputLayers):
        def predict_probs(predictions, proposals):
            calls.append((predictor, predictions, proposals))
            return type(predictor).predict_probs(predictor, predictions, proposals)

        return predict_probs

    for predictor in predictors:
        predictor.predict_probs = recording(predictor)
    try:
        yield calls
    finally:
        for predictor in predictors:
            del predictor.predict_probs


def _scored(calls: list[tuple]) -> list[Instances]:
    """What the RoI heads make of their predictions, which are those of each stage of a cascade."""
    stages = [p.predict_probs(predictions, proposals) for p, predictions, proposals in calls]
    scores = [sum(of_picture) / len(stages) for of_picture in zip(*stages, strict=True)]
    last, predictions, proposals = calls[-1]
    instances, _ = fast_rcnn_inference(
        last.predict_boxes(predictions, proposals),
        scores,
        [p.image_size for p in proposals],
        last.test_score_thresh,
        last.test_nms_thresh,
        last.test_topk_per_image,
    )
    return instances
