"""Seesaw loss: less weight for negatives of rarer classes, more for false positives."""

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import UserError
from .base import BOX_CLASS_LOSS_REGISTRY, BoxClassLoss, Curve, sum_over_processes


def seesaw_loss(
    logits: Tensor,
    gt_classes: Tensor,
    counts: Tensor,
    p: float = 0.8,
    q: float = 2.0,
    min_score: float = 0.01,
) -> Tensor:
    """Return the Seesaw loss of a softmax with background, averaged over proposals; 0 without any.

    −log of e^{z_i} / (e^{z_i} + Σ_{j≠i} S_ij e^{z_j}) for the class i of a proposal ("Seesaw Loss
    for Long-Tailed Instance Segmentation", Wang et al., CVPR 2021, section 3.1), with the
    factors S of :func:`seesaw_factors`. p = q = 0 is the softmax cross-entropy.

    Args:
        logits: shape (N, K + 1), background last.
        gt_classes: shape (N,), K for the background.
        counts, p, q, min_score: as for :func:`seesaw_factors`.
    """
    factors = seesaw_factors(logits.detach(), gt_classes, counts, p, q, min_score)
    loss = F.cross_entropy(logits + factors, gt_classes, reduction="sum")
    return loss / max(len(logits), 1)


def seesaw_factors(
    logits: Tensor,
    gt_classes: Tensor,
    counts: Tensor,
    p: float = 0.8,
    q: float = 2.0,
    min_score: float = 0.01,
) -> Tensor:
    """Return log S_ij for the class i of each proposal, where S_ij = M_ij C_ij.

    The mitigation factor M_ij is (N_j / N_i)^p if class j has fewer samples than i, else 1. The
    compensation factor C_ij is (σ_j / σ_i)^q if its score σ_j in the plain softmax exceeds σ_i,
    else 1. The paper defines both between classes; factors from and to the background are 1.

    Args:
        logits: shape (N, K + 1), background last.
        gt_classes: shape (N,), K for the background.
        counts: accumulated samples N of each class, shape (K,). Zero counts are treated as 1.
        p, q: exponents, >= 0.
        min_score: lower bound of σ_i, as in the authors' code.

    Returns:
        Shape (N, K + 1), float32 or more.
    """
    num_classes = len(counts)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    factors = torch.zeros_like(logits, dtype=dtype)
    rows = (gt_classes < num_classes).nonzero()[:, 0]
    labels, z = gt_classes[rows], logits[rows].to(dtype)
    log_n = counts.clamp(min=1).to(dtype).log()
    # log σ is z minus the logsumexp, which cancels in the ratio of two scores.
    own = torch.maximum(z.gather(1, labels[:, None]), z.logsumexp(1, True) + math.log(min_score))
    compensation = (z[:, :-1] - own).clamp_(min=0).mul_(q)
    mitigation = (log_n[labels][:, None] - log_n).clamp_(min=0)
    factors[rows, :-1] = compensation.sub_(mitigation, alpha=p)
    return factors


@BOX_CLASS_LOSS_REGISTRY.register()
class SeesawLoss(BoxClassLoss):
    """:func:`seesaw_loss` with counts of the foreground proposals of each class in training.

    Counts are summed over processes and saved in checkpoints. Class scores: softmax.
    """

    class_scores = ("softmax",)

    @configurable
    def __init__(self, num_classes: int, *, p: float = 0.8, q: float = 2.0):
        """``p`` and ``q`` are those of :func:`seesaw_factors`."""
        super().__init__(num_classes)
        if p < 0 or q < 0:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.SEESAW_LOSS_P and SEESAW_LOSS_Q must be >= 0, got {p} and {q}."
            )
        self.p, self.q = p, q
        self.register_buffer("sample_counts", torch.zeros(num_classes, dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {**super().from_config(cfg), "p": head.SEESAW_LOSS_P, "q": head.SEESAW_LOSS_Q}

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None = None) -> Tensor:
        if self.training:
            counts = torch.bincount(gt_classes, minlength=self.num_classes + 1)[:-1]
            self.sample_counts += sum_over_processes(counts)
        return seesaw_loss(logits, gt_classes, self.sample_counts, self.p, self.q)
