"""Cross-entropy of every class score, with optional class weights."""

import torch.nn.functional as F
from detectron2.layers import cross_entropy
from torch import Tensor

from ...activation import apa_cross_entropy
from .base import BINARY_SCORES, BOX_CLASS_LOSS_REGISTRY, Curve, is_sigmoid, log_odds, one_hot
from .class_weights import WeightedLoss


def softmax_cross_entropy(
    logits: Tensor, gt_classes: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the softmax cross-entropy, averaged over proposals; 0 without any.

    Args:
        logits: shape (N, K + 1), background last.
        gt_classes: shape (N,), K for the background.
        weights: weight of each proposal's loss, shape (N,); None: 1. The sum is still divided by N.

    """
    if weights is None:
        return cross_entropy(logits, gt_classes)
    losses = F.cross_entropy(logits, gt_classes, reduction="none")
    return (losses * weights).sum() / max(len(logits), 1)


def binary_cross_entropy(
    log_odds: Tensor, gt_classes: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy, summed over classes, averaged over proposals; 0 without any.

    With ``weights`` it is Cui et al.'s class-balanced sigmoid cross-entropy: the weight of a
    proposal's class multiplies its losses for all classes.

    Args:
        log_odds: log-odds of the class scores, shape (N, K).
        gt_classes: shape (N,), K for the background.
        weights: weight of each proposal's loss, shape (N,); None: 1. The sum is still divided by N.

    """
    targets = one_hot(gt_classes, log_odds.shape[1]).to(log_odds.dtype)
    weights = None if weights is None else weights[:, None].to(log_odds.dtype)
    loss = F.binary_cross_entropy_with_logits(log_odds, targets, weights, reduction="sum")
    return loss / max(len(log_odds), 1)


@BOX_CLASS_LOSS_REGISTRY.register()
class CrossEntropy(WeightedLoss):
    """:func:`softmax_cross_entropy`, or :func:`binary_cross_entropy` for the other class scores.

    Gumbel and APA scores use the fused :func:`apa_det.activation.apa_cross_entropy`. Class scores:
    softmax, sigmoid, gumbel, apa.
    """

    class_scores = ("softmax", *BINARY_SCORES)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None) -> Tensor:
        weights = self.proposal_weights(gt_classes)
        if curve is None:
            return softmax_cross_entropy(logits, gt_classes, weights)
        if is_sigmoid(curve):
            return binary_cross_entropy(log_odds(logits, curve), gt_classes, weights)
        loss = apa_cross_entropy(logits, gt_classes, *curve, weights=weights)
        return loss / max(len(logits), 1)
