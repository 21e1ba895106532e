"""Weights of the classes, by their frequency or given, and losses that take them."""

import json
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ...data.class_counts import ClassCount, class_counts, class_names
from .base import FrequencyLoss

__all__ = ["WeightedLoss", "effective_number_weights", "inverse_weights", "read_class_weights"]

_BY_FREQUENCY = ("inverse", "sqrt_inverse", "effective_number")


def inverse_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """1 / n^power of the classes' counts n, with a mean of 1.

    Args:
        counts: shape (K,). A class without any weighs as one with 1.
        power: 1, or 0.5 for weights by the square root.

    Returns:
        float32, shape (K,).
    """
    return _with_mean_1(counts.clamp(min=1).double() ** -power)


def effective_number_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    """The inverse effective numbers (1 − β) / (1 − β^n) of the classes' counts n, with a mean of 1.

    "Class-Balanced Loss Based on Effective Number of Samples" (Cui et al., CVPR 2019), sections 3
    and 4. β = 0 gives equal weights, β → 1 those of :func:`inverse_weights`.

    Args:
        counts: shape (K,). A class without any weighs as one with 1.
        beta: β, from 0 to below 1.

    Returns:
        float32, shape (K,).
    """
    if beta == 0:
        return torch.ones_like(counts, dtype=torch.float32)
    return _with_mean_1(-1 / torch.expm1(counts.clamp(min=1).double() * math.log(beta)))


def _with_mean_1(weights: Tensor) -> Tensor:
    return (weights / weights.mean()).float()


def read_class_weights(json_file: str, class_names: Sequence[str]) -> Tensor:
    """The weights of a JSON file {class name: weight}.

    Returns:
        float32, shape (K,), in the order of the names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not give a weight of at least 0 to each class, or names another.
    """
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"There is no file of class weights {json_file}.")
    try:
        with PathManager.open(json_file) as f:
            weights = json.load(f)
    except ValueError as error:
        raise ValueError(f"{json_file} is no JSON file: {error}") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{json_file} holds no object {{class name: weight}}.")
    lacking = [name for name in class_names if name not in weights]
    unknown = [name for name in weights if name not in set(class_names)]
    if lacking or unknown:
        problem = f"gives no weight to the class {lacking[0]!r}" if lacking else ""
        raise ValueError(
            f"{json_file} {problem or f'names {unknown[0]!r}, no class of the training dataset'}: "
            "it needs one weight for each class."
        )
    _require_weights([weights[name] for name in class_names], json_file)
    return torch.tensor([float(weights[name]) for name in class_names])


def _require_weights(weights: Sequence[float], source: str) -> None:
    for weight in weights:
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 <= weight < math.inf:
            raise ValueError(f"{source}: a class weight is a number of at least 0, not {weight!r}.")


class WeightedLoss(FrequencyLoss):
    """A loss of each proposal that is multiplied by the weight of its class.

    The background's weight is 1, and the sum over proposals is divided by their number: so equal
    weights of 1 change nothing.
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
            num_classes: K, the number of foreground classes.
            class_weights: "inverse", "sqrt_inverse" (:func:`inverse_weights`), "effective_number"
                (:func:`effective_number_weights`), K numbers, or a JSON file
                (:func:`read_class_weights`). None: all are 1.
            beta: for "effective_number".
            count: what class frequencies are; see :func:`apa_det.data.class_counts.class_counts`.
            datasets: the registered training datasets, for all but numbers.

        Raises:
            ValueError: unknown or negative weights, or not K, or ``beta`` out of bounds.
        """
        super().__init__(num_classes, datasets)
        if isinstance(class_weights, str):
            if class_weights not in _BY_FREQUENCY and not class_weights.endswith(".json"):
                raise ValueError(
                    f"Unknown class weights {class_weights!r}: choose one of "
                    f"{', '.join(_BY_FREQUENCY)}, or give a list or a .json file."
                )
        elif class_weights is not None:
            _require_weights(class_weights, "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS")
            if len(class_weights) != num_classes:
                raise ValueError(
                    f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS has {len(class_weights)} weights for "
                    f"{num_classes} classes."
                )
        if not 0 <= beta < 1:
            raise ValueError(f"The β of class weights is from 0 to below 1, not {beta}.")
        self.class_weights = class_weights
        self.beta = beta
        self.count = count

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

    def from_datasets(self) -> Tensor:
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

    def weights_of(self, gt_classes: Tensor) -> Tensor | None:
        """The weight of each proposal, of shape (N,); None: all are 1."""
        if self.class_weights is None:
            return None
        return F.pad(self.of_classes(gt_classes.device), (0, 1), value=1.0)[gt_classes]
