"""Balanced softmax, or logit adjustment: the training frequencies as priors of the logits."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...data.class_counts import ClassCount, class_counts
from .base import BINARY_SCORES, BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss, log_odds
from .cross_entropy import binary_cross_entropy, softmax_cross_entropy

__all__ = ["BalancedSoftmax", "log_prior_ratios"]


def log_prior_ratios(counts: Tensor) -> Tensor:
    """How much more likely a class is among the training labels than among balanced ones, as a log.

    That is log(K n_j / Σ n) of the counts n: 0 for all classes if they are alike.

    Args:
        counts: shape (K,). A class without any counts as 1.

    Returns:
        float32, shape (K,).
    """
    counts = counts.clamp(min=1).double()
    return (counts / counts.mean()).log().float()


@BOX_CLASS_LOSS_REGISTRY.register()
class BalancedSoftmax(FrequencyLoss):
    """Cross-entropy of logits to which τ times :func:`log_prior_ratios` is added in training.

    Of the softmax, τ = 1 is "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (Ren et al.,
    NeurIPS 2020), and any τ the logit-adjusted loss of "Long-Tail Learning via Logit Adjustment"
    (Menon et al., ICLR 2021, equation 10). The background's prior is left as it is in training. Of
    the other class scores, the log-odds are adjusted alike: the odds of a class among all others
    follow its prior. Detection takes the logits as they are, which are those of balanced classes.

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
            num_classes: K, the number of foreground classes.
            datasets: the registered training datasets, whose class counts are the prior.
            tau: τ; 0 is the cross-entropy.
            count: what is counted; see :func:`apa_det.data.class_counts.class_counts`.
        """
        super().__init__(num_classes, datasets)
        self.tau = tau
        self.count = count

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        tau, count = head.BALANCED_SOFTMAX_TAU, head.CLASS_COUNT
        return {**super().from_config(cfg), "tau": tau, "count": count}

    def from_datasets(self) -> Tensor:
        return self.tau * log_prior_ratios(class_counts(self.datasets, self.count))

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None) -> Tensor:
        shift = self.of_classes(logits.device)
        if curve is None:
            return softmax_cross_entropy(logits + F.pad(shift, (0, 1)), gt_classes)
        return binary_cross_entropy(log_odds(logits, curve) + shift, gt_classes)
