"""Federated loss: binary cross-entropy of a few sampled classes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa_cross_entropy
from ...data.class_counts import class_counts
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss, is_sigmoid, one_hot


def federated_classes(gt_classes: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """Return a mask of the labels and of randomly drawn classes, up to ``num_classes`` in total.

    The draw is that of :func:`torch.multinomial`, from the same random numbers, but the host does
    not wait for the GPU.

    Args:
        gt_classes: int64, shape (N,), K for the background, which counts as one of the classes, as
            in detectron2.
        weights: sampling weights, >= 0, shape (K,). Classes of weight 0 are never drawn.
        num_classes: there are more if there are more labels, and fewer if fewer can be drawn.

    Returns:
        bool, shape (K,).
    """
    is_label = torch.zeros(len(weights) + 1, dtype=torch.bool, device=weights.device)
    is_label.scatter_(0, gt_classes, True)
    weights = F.pad(weights.float(), (0, 1)).masked_fill(is_label, 0)
    order = (weights / torch.empty_like(weights).exponential_(1)).argsort(descending=True)
    is_drawn = (order.argsort() < num_classes - is_label.sum()) & (weights > 0)
    return (is_label | is_drawn)[:-1]


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
        class_weights = self.class_values(logits.device)
        mask = federated_classes(gt_classes, class_weights, self.fed_loss_num_classes)
        if is_sigmoid(curve):
            targets = one_hot(gt_classes, self.num_classes).to(logits.dtype)
            mask = mask.to(logits.dtype)
            loss = F.binary_cross_entropy_with_logits(logits, targets, mask, reduction="sum")
        else:
            mask = mask.float()
            loss = apa_cross_entropy(
                logits, gt_classes, *curve, positive_weights=mask, negative_weights=mask
            )
        return loss / max(len(logits), 1)


def frequency_weights(datasets: str | Sequence[str], power: float = 0.5) -> Callable[[], Tensor]:
    """Return ``get_fed_loss_cls_weights``: the image counts of registered datasets to a power."""
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    return partial(_frequency_weights, names, power)


def _frequency_weights(datasets: Sequence[str], power: float) -> Tensor:
    return class_counts(datasets).float() ** power
