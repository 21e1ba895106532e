"""Focal loss."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa_cross_entropy
from ...errors import UserError
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, is_sigmoid, log_odds
from .class_weights import WeightedLoss


def focal_loss(
    log_odds: Tensor,
    gt_classes: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the binary focal loss, summed over classes, averaged over proposals; 0 without any.

    −α_t (1 − p_t)^γ log p_t ("Focal Loss for Dense Object Detection", Lin et al., ICCV 2017,
    equation 5), where p_t is the score p of the proposal's own class, and 1 − p of other classes.
    γ = 0 without α is binary cross-entropy.

    Args:
        log_odds: log-odds of the class scores, shape (N, K).
        gt_classes: shape (N,), K for the background.
        gamma: γ, >= 0.
        alpha: α_t is α for the proposal's own class, 1 − α for others. Negative: α_t = 1.
        weights: weight of each proposal's loss, shape (N,), as in Cui et al.'s class-balanced focal
            loss; None: 1.
    """
    positive, negative = _alphas(alpha)
    rows = (gt_classes < log_odds.shape[1]).nonzero()[:, 0]
    own = log_odds[rows, gt_classes[rows]]
    # Positives are few: treat all pairs as negatives, then correct the positives.
    all_negatives, own_negatives = _Negatives.apply(log_odds, gamma), _Negatives.apply(own, gamma)
    own_positives = _Negatives.apply(-own, gamma)
    corrections = positive * own_positives - negative * own_negatives
    if weights is None:
        loss = negative * all_negatives.sum() + corrections.sum()
    else:
        loss = negative * (all_negatives.sum(dim=1) * weights).sum()
        loss = loss + (corrections * weights[rows]).sum()
    return loss / max(len(log_odds), 1)


def _alphas(alpha: float) -> tuple[float, float]:
    """Return α_t of the proposal's own class and of others."""
    return (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)


class _Negatives(torch.autograd.Function):
    """−p^γ log(1 − p) of log-odds x, elementwise: softplus(x) σ(x)^γ, with its gradient."""

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
    """:func:`focal_loss`, fused into one pass over the logits for Gumbel and APA scores.

    Class scores: sigmoid, gumbel, apa.
    """

    @configurable
    def __init__(self, num_classes: int, *, gamma: float = 2.0, alpha: float = 0.25, **kwargs):
        """``gamma`` and ``alpha`` are those of :func:`focal_loss`, the others of WeightedLoss."""
        super().__init__(num_classes, **kwargs)
        if gamma < 0 or alpha > 1:
            raise UserError(
                "MODEL.ROI_BOX_HEAD.FOCAL_LOSS_GAMMA must be >= 0 and FOCAL_LOSS_ALPHA <= 1; got "
                f"{gamma} and {alpha}."
            )
        self.gamma, self.alpha = gamma, alpha

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        gamma, alpha = head.FOCAL_LOSS_GAMMA, head.FOCAL_LOSS_ALPHA
        return {**super().from_config(cfg), "gamma": gamma, "alpha": alpha}

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        weights = self.proposal_weights(gt_classes)
        if is_sigmoid(curve):
            return focal_loss(log_odds(logits, curve), gt_classes, self.gamma, self.alpha, weights)
        positive, negative = (
            torch.full((self.num_classes,), a, device=logits.device) for a in _alphas(self.alpha)
        )
        loss = apa_cross_entropy(
            logits,
            gt_classes,
            *curve,
            weights=weights,
            positive_weights=positive,
            negative_weights=negative,
            gamma=self.gamma,
        )
        return loss / max(len(logits), 1)
