"""Balanced softmax (logit adjustment): training frequencies as priors on the logits."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa_cross_entropy
from ...data.class_counts import ClassCount, class_counts
from .base import (
    BINARY_SCORES,
    BOX_CLASS_LOSS_REGISTRY,
    Curve,
    FrequencyLoss,
    is_sigmoid,
    log_odds,
)
from .cross_entropy import binary_cross_entropy, softmax_cross_entropy


def log_prior_ratios(counts: Tensor) -> Tensor:
    """Return log(K n_j / Σ n): the log prior of each class relative to a balanced dataset.

    ``counts`` and the result (float32) have shape (K,). Zero counts are treated as 1.
    """
    counts = counts.clamp(min=1).double()
    return (counts / counts.mean()).log().float()


@BOX_CLASS_LOSS_REGISTRY.register()
class BalancedSoftmax(FrequencyLoss):
    """Cross-entropy, with τ times :func:`log_prior_ratios` added to the logits in training.

    For softmax, τ = 1 is "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (Ren et al.,
    NeurIPS 2020), and other τ are the logit-adjusted loss of "Long-Tail Learning via Logit
    Adjustment" (Menon et al., ICLR 2021, equation 10). The background's prior is not changed. For
    the other class scores, the same is added to the log-odds: the odds of a class against all
    others follow its prior. Inference uses the plain logits, which are those of balanced classes.

    Class scores: softmax, sigmoid, gumbel, apa.
    """

    class_scores = ("softmax", *BINARY_SCORES)

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        datasets: str | Sequence[str],
        tau: float = 1.0,
        count: ClassCount = "image_count",
    ):
        """
        Args:
            datasets: registered training datasets, whose class counts give the prior.
            tau: τ; 0 is plain cross-entropy.
            count: see :func:`apa_det.data.class_counts.class_counts`.
        """
        super().__init__(num_classes, datasets)
        self.tau, self.count = tau, count

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        tau, count = head.BALANCED_SOFTMAX_TAU, head.CLASS_COUNT
        return {**super().from_config(cfg), "tau": tau, "count": count}

    def compute_class_values(self) -> Tensor:
        return self.tau * log_prior_ratios(class_counts(self.datasets, self.count))

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None) -> Tensor:
        shift = self.class_values(logits.device)
        if curve is None:
            return softmax_cross_entropy(logits + F.pad(shift, (0, 1)), gt_classes)
        if is_sigmoid(curve):
            return binary_cross_entropy(log_odds(logits, curve) + shift, gt_classes)
        return apa_cross_entropy(logits, gt_classes, *curve, shift=shift) / max(len(logits), 1)
