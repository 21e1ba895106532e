"""Equalization loss v1 and v2: fewer negative gradients for rare classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa, apa_cross_entropy
from ...data.class_counts import get_scarce_classes
from .base import (
    BOX_CLASS_LOSS_REGISTRY,
    BoxClassLoss,
    Curve,
    FrequencyLoss,
    is_sigmoid,
    sum_over_processes,
)


@BOX_CLASS_LOSS_REGISTRY.register()
class EqualizationLoss(FrequencyLoss):
    """Binary cross-entropy without negative losses of foreground proposals for rare classes.

    "Equalization Loss for Long-Tailed Object Recognition" (Tan et al., CVPR 2020): the loss of
    class j has the weight 1 − E(r) T_λ(f_j) (1 − y_j), where E(r) is 1 for foreground proposals
    and 0 for the background, and T_λ(f_j) is 1 for classes in less than the share λ of the images.
    Summed over classes and averaged over proposals, in one pass over the logits: it is DropLoss
    that keeps all losses of background proposals.

    Class scores: sigmoid, gumbel, apa.
    """

    @configurable
    def __init__(
        self, num_classes: int, *, datasets: str | Sequence[str], threshold: float = 1.76e-3
    ):
        """
        Args:
            datasets: registered training datasets, whose image counts define rare classes.
            threshold: λ. The paper's value is for LVIS v0.5.
        """
        super().__init__(num_classes, datasets)
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        threshold = cfg.MODEL.ROI_BOX_HEAD.EQUALIZATION_LOSS_THRESHOLD
        return {**super().from_config(cfg), "threshold": threshold}

    def compute_class_values(self) -> Tensor:
        return get_scarce_classes(self.datasets, self.threshold)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        rare = self.class_values(logits.device)
        share = torch.ones((), device=logits.device)
        loss = apa_cross_entropy(logits, gt_classes, *curve, scarce=rare, share=share)
        return loss / max(len(logits), 1)


def equalization_weights(
    positive: Tensor, negative: Tensor, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Return the weights q of positive and r of negative losses in equalization loss v2.

    r = f(g) and q = 1 + α (1 − f(g)), where g is the ratio of a class's accumulated positive to
    negative gradients and f(g) = 1 / (1 + e^{−γ(g − μ)}) ("Equalization Loss v2: A New Gradient
    Balance Approach for Long-tailed Object Detection", Tan et al., CVPR 2021, section 3).

    Args:
        positive, negative: accumulated gradients, shape (K,). Both weights are 1 while they are 0.
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
    """Return the class-weighted binary cross-entropy, as a mean over proposals; 0 without any.

    Args:
        log_odds: log-odds of the class scores, shape (N, K).
        gt_classes: shape (N,), K for the background.
        positive_weights, negative_weights: weights of a class's loss for its own and for other
            proposals, shape (K,); see :func:`equalization_weights`.
    """
    own, labels = _of_labels(log_odds, gt_classes)
    # Positives are few: treat all pairs as negatives, then correct the positives.
    negatives = (F.softplus(log_odds).sum(dim=0) * negative_weights).sum()
    positives = F.softplus(-own) * positive_weights[labels]
    corrections = positives - F.softplus(own) * negative_weights[labels]
    return (negatives + corrections.sum()) / max(len(log_odds), 1)


def gradients_by_class(log_odds: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the absolute gradients of binary cross-entropy per class, summed over proposals.

    Args:
        log_odds: shape (N, K).
        gt_classes: shape (N,), K for the background.

    Returns:
        Two tensors of shape (K,): the sum of 1 − p over a class's proposals, and of p over others.
    """
    return _gradients_of_scores(torch.sigmoid(log_odds), gt_classes)


def _gradients_of_scores(scores: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
    num_classes = scores.shape[1]
    own = scores.gather(1, gt_classes.clamp(max=num_classes - 1)[:, None])[:, 0]
    sums = scores.new_zeros(2, num_classes + 1)  # the background's are not used
    sums.index_add_(1, gt_classes, torch.stack([1 - own, own]))
    positive, own_sum = sums[:, :-1]
    return positive, (scores.sum(dim=0) - own_sum).clamp_(min=0)


def _of_labels(log_odds: Tensor, gt_classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of foreground proposals, after the log-odds of these classes."""
    rows = (gt_classes < log_odds.shape[1]).nonzero()[:, 0]
    return log_odds[rows, gt_classes[rows]], gt_classes[rows]


@BOX_CLASS_LOSS_REGISTRY.register()
class EqualizationLossV2(BoxClassLoss):
    """:func:`equalization_loss_v2` with gradients accumulated in training.

    The loss of Gumbel and APA scores is fused into one pass over the logits.
    The gradients are those of the weighted loss. They are summed over processes, and the sums are
    saved in checkpoints. The paper's optional objectness branch is not implemented. Class scores:
    sigmoid, gumbel, apa.
    """

    @configurable
    def __init__(
        self, num_classes: int, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
    ):
        """``gamma``, ``mu`` and ``alpha`` are those of :func:`equalization_weights`."""
        super().__init__(num_classes)
        self.settings = {"gamma": gamma, "mu": mu, "alpha": alpha}
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
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        gradients = self.positive_gradients, self.negative_gradients
        weights = [w.to(logits.dtype) for w in equalization_weights(*gradients, **self.settings)]
        if self.training:
            with torch.no_grad():
                scores = logits.sigmoid() if is_sigmoid(curve) else apa(logits, *curve)
                new = torch.stack(_gradients_of_scores(scores, gt_classes)) * torch.stack(weights)
            for total, term in zip(gradients, sum_over_processes(new), strict=True):
                total += term
        if is_sigmoid(curve):
            return equalization_loss_v2(logits, gt_classes, *weights)
        both = {"positive_weights": weights[0], "negative_weights": weights[1]}
        return apa_cross_entropy(logits, gt_classes, *curve, **both) / max(len(logits), 1)
