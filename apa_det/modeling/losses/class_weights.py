"""Class weights, given or from class frequencies, and the base class of weighted losses."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...data.class_counts import ClassCount, class_counts, class_names
from ...errors import UserError
from ...utils.json_files import read_json
from .base import FrequencyLoss

_BY_FREQUENCY = ("inverse", "sqrt_inverse", "effective_number")


def inverse_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """Return 1 / n^power for class counts n, scaled to a mean of 1.

    ``counts`` and the result (float32) have shape (K,). Zero counts are treated as 1.
    """
    return _with_mean_1(counts.clamp(min=1).double() ** -power)


def effective_number_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    """Return (1 − β) / (1 − β^n), the inverse effective number of samples, scaled to a mean of 1.

    "Class-Balanced Loss Based on Effective Number of Samples" (Cui et al., CVPR 2019), sections 3
    and 4. β is in [0, 1); 0 gives equal weights, β → 1 gives :func:`inverse_weights`.

    ``counts`` and the result (float32) have shape (K,). Zero counts are treated as 1.
    """
    if beta == 0:
        return torch.ones_like(counts, dtype=torch.float32)
    return _with_mean_1(-1 / torch.expm1(counts.clamp(min=1).double() * math.log(beta)))


def _with_mean_1(weights: Tensor) -> Tensor:
    return (weights / weights.mean()).float()


def read_class_weights(json_file: str, class_names: Sequence[str]) -> Tensor:
    """Read class weights from a JSON file {class name: weight}.

    Returns:
        float32, shape (K,), in the order of ``class_names``.

    Raises:
        UserError: the file is missing or invalid, lacks a class, names an unknown class, or has a
            negative weight.
    """
    weights = read_json(json_file)
    if not isinstance(weights, dict):
        raise UserError(f"{json_file} must be a JSON object {{class name: weight}}.")
    lacking = [f"no weight for the class {name!r}" for name in class_names if name not in weights]
    known = set(class_names)
    unknown = [f"a weight for the unknown class {name!r}" for name in weights if name not in known]
    if problems := lacking + unknown:
        advice = "Give one weight for each class of the training dataset."
        raise UserError(f"{json_file} has {problems[0]}. {advice}")
    _require_weights([weights[name] for name in class_names], json_file)
    return torch.tensor([float(weights[name]) for name in class_names])


def _require_weights(weights: Sequence[float], source: str) -> None:
    for weight in weights:
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < math.inf:
            raise UserError(f"{source}: class weights must be finite numbers >= 0, got {weight!r}.")


class WeightedLoss(FrequencyLoss):
    """Base class of losses that multiply the loss of each proposal by the weight of its class.

    The background's weight is 1. The sum over proposals is divided by their number, so weights of
    1 change nothing.
    """

    takes_class_weights = True

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        class_weights: str | Sequence[float] | None = None,
        beta: float = 0.999,
        count: ClassCount = "image_count",
        datasets: str | Sequence[str] = (),
    ):
        """
        Args:
            class_weights: "inverse", "sqrt_inverse" (:func:`inverse_weights`), "effective_number"
                (:func:`effective_number_weights`), K numbers, or a JSON file
                (:func:`read_class_weights`). None: all weights are 1.
            beta: β of "effective_number".
            count: see :func:`apa_det.data.class_counts.class_counts`.
            datasets: registered training datasets; not needed for K numbers.

        Raises:
            UserError: ``class_weights`` is unknown, negative or of the wrong length, or ``beta`` is
                out of range.
        """
        super().__init__(num_classes, datasets)
        if isinstance(class_weights, str):
            if class_weights not in _BY_FREQUENCY and not class_weights.endswith(".json"):
                raise UserError(
                    "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS must be one of "
                    f"{', '.join(_BY_FREQUENCY)}, a list or a .json file; got {class_weights!r}."
                )
        elif class_weights is not None:
            _require_weights(class_weights, "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS")
            if len(class_weights) != num_classes:
                raise UserError(
                    f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS must have {num_classes} weights, one per "
                    f"class; got {len(class_weights)}."
                )
        if not 0 <= beta < 1:
            raise UserError(f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS_BETA must be in [0, 1), got {beta}.")
        self.class_weights, self.beta, self.count = class_weights, beta, count

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            **super().from_config(cfg),
            "datasets": () if head.CLASS_WEIGHTS is None else cfg.DATASETS.TRAIN,
            "class_weights": head.CLASS_WEIGHTS,
            "beta": head.CLASS_WEIGHTS_BETA,
            "count": head.CLASS_COUNT,
        }

    def compute_class_values(self) -> Tensor:
        weights = self.class_weights
        if not isinstance(weights, str):
            return torch.tensor([float(weight) for weight in weights])
        if weights.endswith(".json"):
            return read_class_weights(weights, class_names(self.datasets))
        counts = class_counts(self.datasets, self.count)
        if weights == "effective_number":
            return effective_number_weights(counts, self.beta)
        return inverse_weights(counts, 1.0 if weights == "inverse" else 0.5)

    def look_up(self) -> None:
        if self.class_weights is not None:
            super().look_up()

    def proposal_weights(self, gt_classes: Tensor) -> Tensor | None:
        """Return the weight of each proposal, shape (N,), or None if all are 1."""
        if self.class_weights is None:
            return None
        return F.pad(self.class_values(gt_classes.device), (0, 1), value=1.0)[gt_classes]
