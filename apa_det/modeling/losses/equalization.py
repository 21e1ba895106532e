"""Equalization loss, versions 1 and 2: rare classes get fewer negative gradients."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa_cross_entropy
from ...data.class_counts import get_scarce_classes
from .base import (
    BOX_CLASS_LOSS_REGISTRY,
    BoxClassLoss,
    Curve,
    FrequencyLoss,
    log_odds,
    sum_over_processes,
)

__all__ = [
    "EqualizationLoss",
    "EqualizationLossV2",
    "equalization_loss_v2",
    "equalization_weights",
    "gradients_by_class",
]


@BOX_CLASS_LOSS_REGISTRY.register()
class EqualizationLoss(FrequencyLoss):
    """Binary cross-entropy, where a proposal of one class gives no negative loss to rare ones.

    "Equalization Loss for Long-Tailed Object Recognition" (Tan et al., CVPR 2020): the loss of
    class j has the weight 1 − E(r) T_λ(f_j) (1 − y_j), where E(r) is 1 for a foreground proposal
    and 0 for the background, and T_λ(f_j) is 1 for a class in less than the share λ of the
    pictures. Summed over classes, divided by the number of proposals, in one pass over the logits:
    it is DropLoss that keeps all losses of background proposals.

    Class scores: sigmoid, gumbel, apa.
    """

    @configurable
    def __init__(
        self, num_classes: int, *, datasets: str | Sequence[str], threshold: float = 1.76e-3
    ):
        """
        Args:
            num_classes: K, the number of foreground classes.
            datasets: the registered training datasets, by whose image counts classes are rare.
            threshold: λ. The paper's is for LVIS v0.5.
        """
        super().__init__(num_classes, datasets)
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        threshold = cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_THRESHOLD
        return {**super().from_config(cfg), "threshold": threshold}

    def from_datasets(self) -> Tensor:
        return get_scarce_classes(self.datasets, self.threshold)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        rare = self.of_classes(logits.device)
        share = torch.ones((), device=logits.device)
        loss = apa_cross_entropy(logits, gt_classes, *curve, scarce=rare, share=share)
        return loss / max(len(logits), 1)


def equalization_weights(
    positive: Tensor, negative: Tensor, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
) -> tuple[Tensor, Tensor]:
    """The weights q of positive and r of negative losses in equalization loss v2.

    r = f(g) and q = 1 + α (1 − f(g)) of the ratio g of a class's positive to its negative gradients
    so far, with f(g) = 1 / (1 + e^{−γ(g − μ)}) ("Equalization Loss v2: A New Gradient Balance
    Approach for Long-tailed Object Detection", Tan et al., CVPR 2021, section 3).

    Args:
        positive, negative: shape (K,), the gradients. Both weights are 1 before there are any.
        gamma, mu, alpha: γ, μ and α.

    Returns:
        q and r, each of shape (K,).
    """
    ratio = torch.where(negative > 0, positive / negative, torch.inf)
    mapped = torch.sigmoid(gamma * (ratio - mu))
    return 1 + alpha * (1 - mapped), mapped


def equalization_loss_v2(
    log_odds: Tensor, gt_classes: Tensor, positive_weights: Tensor, negative_weights: Tensor
) -> Tensor:
    """Binary cross-entropy with weights of each class, summed, by the number of proposals.

    Args:
        log_odds: shape (N, K), the log-odds of each class's score.
        gt_classes: shape (N,), K for the background.
        positive_weights, negative_weights: shape (K,), of the loss of a class for its own
            proposals, and for others; see :func:`equalization_weights`.

    Returns:
        A scalar; 0 without proposals.
    """
    own, labels = _of_labels(log_odds, gt_classes)
    # Few are positive: take all for negatives, and correct those that are not.
    negatives = (F.softplus(log_odds).sum(dim=0) * negative_weights).sum()
    positives = F.softplus(-own) * positive_weights[labels]
    corrections = positives - F.softplus(own) * negative_weights[labels]
    return (negatives + corrections.sum()) / max(len(log_odds), 1)


def gradients_by_class(log_odds: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and negative gradients of binary cross-entropy, of each class.

    They are those of the log-odds, in absolute value, summed over proposals.

    Args:
        log_odds: shape (N, K).
        gt_classes: shape (N,), K for the background.

    Returns:
        Both of shape (K,): the sums of 1 − p over a class's proposals, and of p over others.
    """
    own, labels = _of_labels(log_odds, gt_classes)
    positive = log_odds.new_zeros(log_odds.shape[1])
    positive.index_add_(0, labels, torch.sigmoid(-own))
    negative = torch.sigmoid(log_odds).sum(dim=0).index_add_(0, labels, -torch.sigmoid(own))
    return positive, negative.clamp_(min=0)


def _of_labels(log_odds: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
    """The log-odds of foreground proposals' own classes, and these classes."""
    rows = (gt_classes < log_odds.shape[1]).nonzero()[:, 0]
    return log_odds[rows, gt_classes[rows]], gt_classes[rows]


@BOX_CLASS_LOSS_REGISTRY.register()
class EqualizationLossV2(BoxClassLoss):
    """:func:`equalization_loss_v2`, which gathers the gradients of each class as it trains.

    The gradients are those of the weighted loss. All processes gather together, and checkpoints
    hold the sums. The paper's optional objectness branch is left out. Class scores: sigmoid,
    gumbel, apa.
    """

    @configurable
    def __init__(
        self, num_classes: int, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
    ):
        """
        Args:
            num_classes: K, the number of foreground classes.
            gamma, mu, alpha: as for :func:`equalization_weights`.
        """
        super().__init__(num_classes)
        self.gamma = gamma
        self.mu = mu
        self.alpha = alpha
        for name in ("positive_gradients", "negative_gradients"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.float64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            **super().from_config(cfg),
            "gamma": head.EQUALIZATION_LOSS_V2_GAMMA,
            "mu": head.EQUALIZATION_LOSS_V2_MU,
            "alpha": head.EQUALIZATION_LOSS_V2_ALPHA,
        }

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        x = log_odds(logits, curve)
        weights = equalization_weights(
            *(self.positive_gradients, self.negative_gradients), self.gamma, self.mu, self.alpha
        )
        weights = [weight.to(x.dtype) for weight in weights]
        if self.training:
            self._gather(x.detach(), gt_classes, *weights)
        return equalization_loss_v2(x, gt_classes, *weights)

    def _gather(self, x: Tensor, gt_classes: Tensor, *weights: Tensor) -> None:
        found = torch.stack(gradients_by_class(x, gt_classes)) * torch.stack(weights)
        positive, negative = sum_over_processes(found)
        self.positive_gradients += positive
        self.negative_gradients += negative
