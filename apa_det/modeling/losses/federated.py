"""Federated loss: binary cross-entropy of a few sampled classes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...data.class_counts import class_counts
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss, log_odds


def federated_classes(gt_classes: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Return the labels plus randomly drawn classes, up to ``num_classes`` in total.

    Args:
        gt_classes: int64, shape (N,), K for the background, which counts as one of the classes, as
            in detectron2.
        weights: sampling weights, >= 0, shape (K,). Classes of weight 0 are never drawn.
        num_classes: the result is longer if there are more labels, and shorter if fewer classes
            can be drawn.

    Returns:
        int64: the classes, without the background.
    """
    labels = torch.unique(gt_classes)
    weights = F.pad(weights.float(), (0, 1))
    weights[labels] = 0
    num_drawn = min(num_classes - len(labels), int((weights > 0).sum()))
    if num_drawn > 0:
        labels = torch.cat([labels, torch.multinomial(weights, num_drawn)])
    return labels[labels < len(weights) - 1]


@BOX_CLASS_LOSS_REGISTRY.register()
class FederatedLoss(FrequencyLoss):
    """detectron2's federated loss: binary cross-entropy of :func:`federated_classes`.

    "Probabilistic two-stage detection" (Zhou et al., 2021), for federated datasets, where only a
    few classes are annotated exhaustively per image. Class scores: sigmoid, gumbel, apa.
    """

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        get_fed_loss_cls_weights: Callable[[], Tensor],
        fed_loss_num_classes: int = 50,
    ):
        """
        Args:
            get_fed_loss_cls_weights: returns the sampling weights, shape (K,). It is called after
                the training datasets are loaded.
            fed_loss_num_classes: as ``num_classes`` of :func:`federated_classes`.
        """
        super().__init__(num_classes)
        self.get_fed_loss_cls_weights = get_fed_loss_cls_weights
        self.fed_loss_num_classes = fed_loss_num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head, datasets = cfg.MODEL.ROI_BOX_HEAD, cfg.DATASETS.TRAIN
        power = head.FED_LOSS_FREQ_WEIGHT_POWER
        return {
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "get_fed_loss_cls_weights": frequency_weights(datasets, power),
            "fed_loss_num_classes": head.FED_LOSS_NUM_CLASSES,
        }

    def compute_class_values(self) -> Tensor:
        return self.get_fed_loss_cls_weights()

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        weights = self.class_values(logits.device)
        classes = federated_classes(gt_classes, weights, self.fed_loss_num_classes)
        chosen = log_odds(logits.index_select(1, classes), _select(curve, classes))
        targets = (gt_classes[:, None] == classes).to(chosen.dtype)
        loss = F.binary_cross_entropy_with_logits(chosen, targets, reduction="sum")
        return loss / max(len(logits), 1)


def frequency_weights(datasets: str | Sequence[str], power: float = 0.5) -> Callable[[], Tensor]:
    """Return ``get_fed_loss_cls_weights``: the image counts of registered datasets to a power."""
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    return partial(_frequency_weights, names, power)


def _frequency_weights(datasets: Sequence[str], power: float) -> Tensor:
    return class_counts(datasets).float() ** power


def _select(curve: Curve, classes: Tensor) -> Curve:
    """Return λ and κ of the given classes."""
    per_class = isinstance(curve[0], Tensor) and curve[0].numel() > 1
    return tuple(value[:, classes] for value in curve) if per_class else curve
