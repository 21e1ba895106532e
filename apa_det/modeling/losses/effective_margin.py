"""Effective class-margin loss: binary losses with margins and weights from class frequencies."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...activation import apa_cross_entropy
from ...data.class_counts import ClassCount, class_counts
from ...errors import UserError
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss


def effective_class_margins(
    counts: Tensor, background_ratio: float = 6.3313
) -> tuple[Tensor, Tensor]:
    """Return the log ratio of the margins, and the weight, of each class and the background.

    With n_y the count of class y, n_¬y that of all others including the background, and
    a_y = n_¬y^¼ / (n_y^¼ + n_¬y^¼) ("Long-tail Detection with Effective Class-Margins", Cho and
    Krähenbühl, ECCV 2022; the weights are related to its theorem 2):

    - the log ratio is log((1 − a_y) / a_y) = ¼ log(n_y / n_¬y);
    - the weight is r log((1 + r) / r) with r = n_¬y / n_y.

    Args:
        counts: shape (K,). Zero counts are treated as 1.
        background_ratio: the count of the background, divided by the sum of ``counts``.

    Returns:
        Two float64 tensors of shape (K + 1,), background last.
    """
    counts = counts.clamp(min=1).double()
    counts = torch.cat([counts, background_ratio * counts.sum()[None]])
    ratio = (counts.sum() - counts) / counts
    return -ratio.log() / 4, ratio * (1 / ratio).log1p()


def effective_class_margin_loss(
    logits: Tensor, gt_classes: Tensor, log_ratios: Tensor, weights: Tensor
) -> Tensor:
    """Return the weighted loss, summed over outputs, averaged over proposals; 0 without any.

    Each output z is a binary problem: the softmax of (z − log a, −z − log(1 − a)), where the
    background is a class as any other. Its log-odds are 2z + log((1 − a) / a).

    Args:
        logits: shape (N, K + 1), background last.
        gt_classes: int64, shape (N,), K for the background.
        log_ratios, weights: see :func:`effective_class_margins`.
    """
    both = {"positive_weights": weights, "negative_weights": weights}
    loss = apa_cross_entropy(logits, gt_classes, 1.0, 2.0, shift=log_ratios, **both)
    return loss / max(len(logits), 1)


@BOX_CLASS_LOSS_REGISTRY.register()
class EffectiveClassMarginLoss(FrequencyLoss):
    """:func:`effective_class_margin_loss`, with K + 1 sigmoid outputs.

    In inference, the score of a class is σ(z_y) (1 − σ(z_background)). Class scores: sigmoid.
    """

    class_scores = ("sigmoid",)

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        datasets: str | Sequence[str],
        background_ratio: float = 6.3313,
        count: ClassCount = "image_count",
    ):
        """
        Args:
            datasets: registered training datasets, whose class counts give margins and weights.
            background_ratio: see :func:`effective_class_margins`; > 0. The default is the authors'
                measurement of background to foreground proposals of Mask R-CNN.
            count: see :func:`apa_det.data.class_counts.class_counts`. The paper counts images.

        Raises:
            UserError: ``background_ratio`` is not positive.
        """
        super().__init__(num_classes, datasets)
        if not background_ratio > 0:
            raise UserError(
                "MODEL.ROI_BOX_HEAD.EFFECTIVE_MARGIN_BACKGROUND_RATIO must be > 0, got "
                f"{background_ratio}."
            )
        self.background_ratio, self.count = background_ratio, count
        self.num_outputs = num_classes + 1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            **super().from_config(cfg),
            "background_ratio": head.EFFECTIVE_MARGIN_BACKGROUND_RATIO,
            "count": head.CLASS_COUNT,
        }

    def compute_class_values(self) -> Tensor:
        return class_counts(self.datasets, self.count)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve) -> Tensor:
        counts = self.class_values(logits.device)
        margins = effective_class_margins(counts, self.background_ratio)
        return effective_class_margin_loss(logits, gt_classes, *margins)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the scores of classes and background, shape (N, K + 1), float32."""
        scores = logits.float().sigmoid()
        background = scores[:, self.num_classes :]
        return torch.cat([scores[:, : self.num_classes] * (1 - background), background], dim=1)
