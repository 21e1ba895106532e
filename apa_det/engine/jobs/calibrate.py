"""Fit the strength of a calibration on images of the training set."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor, nn

from ...data import ensure_metadata
from ...data.class_names import align_training_sets
from ...data.frequency import FREQUENCY_LABELS
from ...errors import UserError
from ...evaluation import Detections, GroundTruth, LongTailEvaluator, evaluate
from ...evaluation.by_name import model_classes
from ...evaluation.predictions import detections_from_instances
from ...evaluation.resampling import draw_image_weights, resampled_ap
from ...modeling import CALIBRATION_REGISTRY, APAFastRCNNOutputLayers
from ...modeling.cascade import average_scores
from ...modeling.dense import DenseClassScores
from ...text import format_number
from ...utils.plotting import DPI, GREY, INK, grid, group_color, label
from ...utils.progress import track
from ..job import Job
from ..testing import build_subset_loader, load_model

logger = logging.getLogger(__name__)

_NUM_RESAMPLES = 300
_ROUNDING = 1e-6  # of AP in percent
STRENGTHS = tuple(i / 10 for i in range(11))
_SCORERS = (APAFastRCNNOutputLayers, DenseClassScores)


@dataclass(frozen=True)
class CalibrationFit:
    """Box AP by strength of a calibration; see :func:`score_strengths`.

    Attributes:
        method: name of the calibration.
        strengths: the S strengths; the others are compared with the smallest one, usually 0.
        metrics: for each strength, AP and the AP of each frequency group, in percent.
        detections: for each strength, the mean number of detections per image.
        noise: for each strength, how much its AP could differ from that of the smallest strength by
            chance, see :func:`difference_noise`; NaN if it is unknown, as for one image.
    """

    method: str
    strengths: tuple[float, ...]
    metrics: list[dict[str, float]]
    detections: list[float]
    noise: list[float]

    @property
    def best(self) -> float:
        """The strength with the highest AP of those that raise it by more than the noise.

        The smallest of several; the smallest of all strengths if there is none.
        """
        gains = zip(self.strengths, self._differences(), self.noise, strict=True)
        candidates = [(-gain, s) for s, gain, noise in gains if gain - noise > _ROUNDING]
        return min(candidates)[1] if candidates else min(self.strengths)

    def _differences(self) -> list[float]:
        """Return the AP of each strength minus that of the smallest one."""
        first = self.metrics[self.strengths.index(min(self.strengths))]["AP"]
        return [metrics["AP"] - first for metrics in self.metrics]

    def table(self) -> str:
        """Return a table of one row per strength; "–" for groups without ground truth."""
        first = min(self.strengths)
        rows = [
            [
                f"{strength:g}{' *' if strength == self.best else ''}",
                *(format_number(value, 2) for value in metrics.values()),
                "" if strength == first else f"{difference:+.2f} ± {format_number(noise, 2)}",
                f"{number:.1f}",
            ]
            for strength, metrics, difference, noise, number in zip(
                self.strengths,
                self.metrics,
                self._differences(),
                self.noise,
                self.detections,
                strict=True,
            )
        ]
        headers = [f"{self.method}", *self.metrics[0], f"AP − AP at {first:g}"]
        headers.append("detections per image")
        align = ("left", *["right"] * (len(headers) - 1))
        return tabulate(rows, headers, colalign=align, disable_numparse=True)

    def advice(self) -> str:
        """Return the recommendation that follows from the table, and what the noise is."""
        first, differences = min(self.strengths), self._differences()
        about = (
            "The noise (±) is what the choice of the images alone does not exceed, in 95 % of "
            "bootstrap samples of them."
        )
        if self.best == first:
            pairs = zip(differences, self.noise, strict=True)
            worse = any(-difference - noise > _ROUNDING for difference, noise in pairs)
            what = "improves AP" if worse else f"differs from {first:g}"
            return (
                f"No strength of {self.method} {what} by more than the noise: keep {first:g}. "
                f"{about} More images reduce it."
            )
        i = self.strengths.index(self.best)
        text = (
            f"Strength {self.best:g} has the highest AP of those that raise it by more than the "
            f"noise: {differences[i]:+.2f} ± {self.noise[i]:.2f} against {first:g}"
        )
        if self.best == max(self.strengths):
            text += ". It is the largest one tested, and larger ones may be better"
        return f"{text}. {about}"

    def draw(self, path: str | os.PathLike) -> None:
        """Plot AP, and the AP of each frequency group, against the strength; write a PNG.

        Points of fewer than three strengths are not connected, but side by side, with their values.
        Groups without ground truth are left out.
        """
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axis = figure.subplots()
        few = len(self.strengths) < 3
        for i, name in enumerate(self.metrics[0]):
            values = [metrics[name] for metrics in self.metrics]
            if np.isnan(values).all():
                continue
            style = dict(color=INK, linewidth=2.5) if i == 0 else dict(color=group_color(i - 1))
            group = FREQUENCY_LABELS.get(name.removeprefix("AP"))
            text = label(f"{name} ({group})" if group else name)
            style |= {"marker": "o", "markersize": 5, "linestyle": "none" if few else "-"}
            shift = 0.08 * i * (max(self.strengths) - min(self.strengths) or 1) if few else 0
            strengths = [strength + shift for strength in self.strengths]
            axis.plot(strengths, values, label=text, **style)
            for x, y in zip(strengths, values, strict=True) if few else ():
                offset = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
                axis.annotate(f"{y:.1f}", (x, y), fontsize=9, **offset)
        if few:
            axis.set_xticks(self.strengths)
            axis.margins(0.15)
        else:
            style = {"color": GREY, "linestyle": "--", "linewidth": 1}
            axis.axvline(self.best, label=f"recommended: {self.best:g}", **style)
        axis.set_xlabel(f"strength of {self.method} (0: no calibration)")
        axis.set_ylabel("box AP on training images, %")
        figure.legend(frameon=False, loc="outside right upper")
        grid(axis)
        figure.savefig(path, dpi=DPI)


def fit_calibration(
    job: Job, method: str, num_images: int = 500, strengths: Sequence[float] = STRENGTHS
) -> CalibrationFit:
    """Fit a calibration of a job's checkpoint on images of its first training set.

    Args:
        job: the job, set up for evaluation. The images are preprocessed like test images; the
            frequency groups are those of its evaluation.
        method: a name in ``CALIBRATION_REGISTRY``.
        num_images: the number of images, chosen by :func:`apa_det.evaluation.choose_subset`, so
            that rare classes are included.
        strengths: see :func:`score_strengths`.

    Raises:
        UserError: an argument is out of range, the training set or the checkpoint is missing or
            invalid, or the model does not support the calibration.
    """
    if num_images < 1:
        raise UserError(f"The number of images must be >= 1, got {num_images}.")
    if min(strengths) < 0:
        raise UserError(f"The strengths must be >= 0, got {min(strengths):g}.")
    if method not in CALIBRATION_REGISTRY:
        known = ", ".join(sorted(name for name, _ in CALIBRATION_REGISTRY))
        raise UserError(f"The method must be one of {known}; got {method!r}.")
    if not job.train_datasets:
        raise UserError(
            f"{job.KEYS['train_datasets']} is empty: set it to the dataset to fit the calibration "
            "on."
        )
    job = job.with_calibration(method, 1.0)
    job.check(eval_only=True)
    name = job.train_datasets[0]
    for dataset in job.train_datasets:
        ensure_metadata(dataset)
    model = load_model(job)
    names = model_classes(model)
    if names is not None:
        align_training_sets(job.train_datasets, names)
    logger.info("Choosing %d images of %s", num_images, name)
    evaluator = LongTailEvaluator(name, groups=job.groups, subset=num_images, subset_only=True)
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
    """Evaluate the boxes of a detector with several strengths of a calibration.

    The model runs once on each image. For each strength, its proposals are scored again, and go
    through the score threshold and the NMS of inference. In a cascade, each stage is calibrated and
    the scores are averaged.

    Args:
        model: a detector with :class:`APAFastRCNNOutputLayers`, or :class:`APARetinaNet` or
            :class:`APAFCOS`, on any device, with ``calibration_datasets``. Its calibration is
            restored; it is left in eval mode.
        loader: a detectron2 test loader of the images.
        truth: the ground truth of these images.
        category_ids: (K,), the dataset's category id of each model class.
        method: a name in ``CALIBRATION_REGISTRY``.
        strengths: S values >= 0.

    Raises:
        UserError: the model has no such predictor, or one without the datasets that it needs.
    """
    predictors = [m for m in model.modules() if isinstance(m, _SCORERS)]
    if not predictors:
        raise UserError(
            "The model has no box predictor to calibrate and no dense detector: use APAROIHeads, "
            "APACascadeROIHeads, APARetinaNet or APAFCOS."
        )
    strengths = tuple(strengths)
    calibrations = [CALIBRATION_REGISTRY.get(method)(strength) for strength in strengths]
    if calibrations[0].needs_counts and not all(p.calibration_datasets for p in predictors):
        raise UserError(
            f"{method} needs the training set: set calibration_datasets of the box predictors or "
            "the dense detector."
        )
    detections: list[list[Detections]] = [[] for _ in strengths]
    before = [predictor.calibration for predictor in predictors]
    model.eval()
    try:
        with _boxes_only(model), torch.no_grad():
            for images in track(loader, "Scoring images", "batches"):
                with _recorded(predictors) as calls:
                    model(images)
                for calibration, parts in zip(calibrations, detections, strict=True):
                    for predictor in predictors:
                        predictor.calibration = calibration
                    for image, instances in zip(images, _scored(calls), strict=True):
                        instances = detector_postprocess(instances, image["height"], image["width"])
                        parts.append(
                            detections_from_instances(instances, image["image_id"], category_ids)
                        )
    finally:
        for predictor, calibration in zip(predictors, before, strict=True):
            predictor.calibration = calibration
    names = ("AP", *(f"AP{group}" for group in truth.groups.names))
    metrics, resampled = [], []
    num_images = len(truth.image_ids)
    weights = draw_image_weights(num_images, _NUM_RESAMPLES if num_images > 1 else 1)
    for parts in track(detections, "Evaluating strengths", "strengths"):
        evaluation = evaluate(truth, Detections.concatenate(parts), "bbox", matches=True)
        values = evaluation.metrics()
        metrics.append({name: 100 * values[name] for name in names})
        resampled.append(100 * resampled_ap(evaluation, weights)["AP"])
    means = [sum(map(len, parts)) / max(len(parts), 1) for parts in detections]
    noise = difference_noise(np.stack(resampled), strengths.index(min(strengths)))
    return CalibrationFit(method, strengths, metrics, means, noise)


def difference_noise(resampled: np.ndarray, reference: int) -> list[float]:
    """Return how much each of several values could differ from a reference by chance.

    In 95 % of the bootstrap samples, no difference deviates from its mean by more than this. It is
    a multiple of the standard deviation of the difference, the same one for all values, so it holds
    for the best of them (simultaneous intervals by the maximum of the studentized deviations).

    Args:
        resampled: (S, B), S values in B bootstrap samples of the images; NaN if undefined.
        reference: index of the value that the others are compared with.

    Returns:
        S numbers; 0 for the reference. NaN if it is unknown, with fewer than two samples.
    """
    defined = resampled[:, ~np.isnan(resampled).any(axis=0)]
    if defined.shape[1] < 2:
        return [0.0 if i == reference else np.nan for i in range(len(resampled))]
    differences = defined - defined[reference]
    deviations = differences - differences.mean(axis=1, keepdims=True)
    spreads = deviations.std(axis=1)
    varying = spreads > 0
    ratios = np.abs(deviations[varying]) / spreads[varying, None]
    factor = np.quantile(ratios.max(axis=0), 0.95) if varying.any() else 0.0
    return (factor * spreads).tolist()


@contextmanager
def _boxes_only(model: nn.Module) -> Iterator[None]:
    """Return a context in which RoI heads predict no masks and keypoints."""
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
def _recorded(scorers: list[nn.Module]) -> Iterator[list[tuple]]:
    """Yield a list that records the calls which compute scores: the module and its arguments.

    They are ``predict_probs`` of box predictors and ``forward_inference`` of dense detectors.
    """
    calls = []

    def recording(scorer: nn.Module, name: str):
        def method(*arguments):
            calls.append((scorer, *_copied(arguments)))
            return getattr(type(scorer), name)(scorer, *arguments)

        return method

    names = [
        "predict_probs" if isinstance(s, _SCORERS[0]) else "forward_inference" for s in scorers
    ]
    for scorer, name in zip(scorers, names, strict=True):
        setattr(scorer, name, recording(scorer, name))
    try:
        yield calls
    finally:
        for scorer, name in zip(scorers, names, strict=True):
            delattr(scorer, name)


def _copied(value: object) -> object:
    """Copy lists of tensors, which detectron2's dense detectors may change."""
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def _scored(calls: list[tuple]) -> list[Instances]:
    """Return the detections of recorded calls, which are the stages of a cascade, or only one."""
    last, *arguments = calls[-1]
    if isinstance(last, DenseClassScores):
        return last.forward_inference(*_copied(arguments))
    predictions, proposals = arguments
    instances, _ = last.postprocessing.select(
        last.predict_boxes(predictions, proposals),
        average_scores(calls),
        [p.image_size for p in proposals],
        last.test_score_thresh,
        last.test_nms_thresh,
        last.test_topk_per_image,
    )
    return instances
