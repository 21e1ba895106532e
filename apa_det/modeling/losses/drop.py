"""DropLoss: fewer negative losses for scarce classes. With Gumbel scores, "GOL + DropLoss"."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa_cross_entropy
from ...data.class_counts import get_scarce_classes
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss, is_sigmoid, one_hot


def drop_loss(log_odds: Tensor, gt_classes: Tensor, scarce: Tensor) -> Tensor:
    """Return the binary cross-entropy with :func:`drop_loss_weights`, averaged over proposals.

    With log-odds of Gumbel scores it is "GOL + DropLoss" ("Long-tailed Instance Segmentation using
    Gumbel Optimized Loss", Alexandridis et al., ECCV 2022).

    Args:
        log_odds: log-odds of the class scores, shape (N, K); see :func:`apa_det.logit_apa`.
        gt_classes, scarce: as for :func:`drop_loss_weights`.

    Returns:
        A scalar, summed over classes; 0 without proposals.
    """
    targets = one_hot(gt_classes, log_odds.shape[1]).to(log_odds.dtype)
    weights = drop_loss_weights(gt_classes, scarce)
    loss = F.binary_cross_entropy_with_logits(log_odds, targets, weights, reduction="sum")
    return loss / max(len(log_odds), 1)


def drop_loss_weights(gt_classes: Tensor, scarce: Tensor) -> Tensor:
    """Return DropLoss's mask ("DropLoss for Long-Tail Instance Segmentation", AAAI 2021).

    Foreground proposals give no negative loss to scarce classes. The negative loss of a background
    proposal for a scarce class is dropped if a uniform draw, one per proposal and class, exceeds
    the share of scarce labels among the foreground proposals. Without foreground proposals,
    nothing is dropped.

    Args:
        gt_classes: shape (N,), K for the background.
        scarce: mask of scarce classes, boolean, shape (K,).

    Returns:
        float32, shape (N, K): 1 for losses that are kept, 0 for dropped ones.
    """
    n, k = len(gt_classes), len(scarce)
    share = share_of_scarce_labels(gt_classes, scarce)
    drawn = torch.rand(n, k, device=gt_classes.device) > share
    dropped = scarce & ~one_hot(gt_classes, k) & ((gt_classes < k)[:, None] | drawn)
    return (~dropped).float()


def share_of_scarce_labels(gt_classes: Tensor, scarce: Tensor) -> Tensor:
    """Return the share of scarce classes among foreground proposals: a scalar, 1 without any."""
    num_foreground = (gt_classes < len(scarce)).sum()
    num_scarce = F.pad(scarce, (0, 1))[gt_classes].sum()
    return torch.where(num_foreground > 0, num_scarce / num_foreground.clamp(min=1), 1.0)


@BOX_CLASS_LOSS_REGISTRY.register()
class DropLoss(FrequencyLoss):
    """:func:`drop_loss`, fused into one pass over the logits for Gumbel and APA scores.

    Class scores: sigmoid, gumbel, apa.
    """

    @configurable
    def __init__(
        self, num_classes: int, *, datasets: str | Sequence[str], threshold: float = 0.0011
    ):
        """
        Args:
            datasets: registered training datasets, whose image counts define scarce classes; see
                :func:`apa_det.data.class_counts.get_scarce_classes`.
            threshold: a class in less than this share of the images is scarce.
        """
        super().__init__(num_classes, datasets)
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        threshold = cfg.MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD
        return {**super().from_config(cfg), "threshold": threshold}

    def compute_class_values(self) -> Tensor:
        return get_scarce_classes(self.datasets, self.threshold)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        scarce = self.class_values(gt_classes.device)
        if is_sigmoid(curve):
            return drop_loss(logits, gt_classes, scarce)
        share = share_of_scarce_labels(gt_classes, scarce)
        loss = apa_cross_entropy(logits, gt_classes, *curve, scarce=scarce, share=share)
        return loss / max(len(logits), 1)
