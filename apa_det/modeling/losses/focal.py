"""The focal loss."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from .base import BOX_CLASS_LOSS_REGISTRY, Curve, log_odds
from .class_weights import WeightedLoss

__all__ = ["FocalLoss", "focal_loss"]


def focal_loss(
    log_odds: Tensor,
    gt_classes: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weights: Tensor | None = None,
) -> Tensor:
    """Binary focal loss, summed over classes, by the number of proposals.

    −α_t (1 − p_t)^γ log p_t ("Focal Loss for Dense Object Detection", Lin et al., ICCV 2017,
    equation 5), where p_t is a class's score p for the class of a proposal, and 1 − p for others.
    γ = 0 without α is the binary cross-entropy.

    Args:
        log_odds: shape (N, K), the log-odds of each class's score.
        gt_classes: shape (N,), K for the background.
        gamma: γ, at least 0.
        alpha: α_t is α for the class of a proposal, and 1 − α for others. Below 0: all are 1.
        weights: shape (N,), of each proposal's loss, as in Cui et al.'s class-balanced focal loss;
            None: 1.

    Returns:
        A scalar; 0 without proposals.
    """
    positive, negative = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    rows = (gt_classes < log_odds.shape[1]).nonzero()[:, 0]
    own = log_odds[rows, gt_classes[rows]]
    # Few are positive: take all for negatives, and correct those that are not.
    of_rows, of_own = _Negatives.apply(log_odds, gamma), _Negatives.apply(own, gamma)
    mirrored = _Negatives.apply(-own, gamma)
    corrections = positive * mirrored - negative * of_own
    if weights is None:
        loss = negative * of_rows.sum() + corrections.sum()
    else:
        loss = negative * (of_rows.sum(dim=1) * weights).sum() + (corrections * weights[rows]).sum()
    return loss / max(len(log_odds), 1)


class _Negatives(torch.autograd.Function):
    """−p^γ log(1 − p) of log-odds x, elementwise: softplus(x) σ(x)^γ, with its derivative."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: float) -> Tensor:
        loss = F.softplus(x)
        power = torch.exp_(x - loss)  # σ(x)
        derivative = (1 - power).mul_(loss).mul_(gamma).add_(power)
        power.pow_(gamma)
        ctx.save_for_backward(derivative.mul_(power))
        return loss.mul_(power)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return derivative * grad, None


@BOX_CLASS_LOSS_REGISTRY.register()
class FocalLoss(WeightedLoss):
    """:func:`focal_loss`. Class scores: sigmoid, gumbel, apa."""

    @configurable
    def __init__(self, num_classes: int, *, gamma: float = 2.0, alpha: float = 0.25, **kwargs):
        """
        Args:
            num_classes: K, the number of foreground classes.
            gamma, alpha: as for :func:`focal_loss`.
            kwargs: of the class weights, as for :class:`WeightedLoss`.
        """
        super().__init__(num_classes, **kwargs)
        if gamma < 0 or alpha > 1:
            raise ValueError(f"The focal loss takes γ ≥ 0 and α ≤ 1, not {gamma} and {alpha}.")
        self.gamma = gamma
        self.alpha = alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            **super().from_config(cfg),
            "gamma": head.FOCAL_LOSS_GAMMA,
            "alpha": head.FOCAL_LOSS_ALPHA,
        }

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        weights = self.weights_of(gt_classes)
        return focal_loss(log_odds(logits, curve), gt_classes, self.gamma, self.alpha, weights)
