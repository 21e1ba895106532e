"""Balanced group softmax: one softmax per group of classes of similar frequency."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...data.class_counts import ClassCount, class_counts
from ...errors import UserError
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss


def group_softmax_loss(
    logits: Tensor, gt_classes: Tensor, groups: Tensor, others_ratio: float = 8.0
) -> Tensor:
    """Return the sum of the softmax cross-entropies of all groups; 0 without proposals.

    "Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax" (Li
    et al., CVPR 2020, section 4). Each of the G groups of classes has an additional output,
    "others", for proposals of none of its classes; one more group separates foreground from
    background. Each cross-entropy is a mean: that of foreground and background over all proposals,
    that of a group over the proposals of its classes and a random sample of others. Groups without
    proposals are skipped.

    Args:
        logits: shape (N, K + G + 2): the classes, the G "others", foreground, background.
        gt_classes: shape (N,), K for the background.
        groups: group of each class, from 0 to G − 1, int64, shape (K,).
        others_ratio: sample at most this many others per proposal of a group's classes.
    """
    num_classes = len(groups)
    num_groups = logits.shape[1] - num_classes - 2
    is_background = (gt_classes == num_classes).long()
    loss = F.cross_entropy(logits[:, -2:], is_background, reduction="sum") / max(len(logits), 1)
    for group in range(num_groups):
        members = (groups == group).nonzero()[:, 0]
        column = gt_classes.new_full((num_classes + 1,), len(members))  # of "others"
        column[members] = torch.arange(len(members), device=column.device)
        targets = column[gt_classes]
        own = (targets < len(members)).nonzero()[:, 0]
        if len(own) == 0:
            continue
        others = (targets == len(members)).nonzero()[:, 0]
        chosen = torch.randperm(len(others), device=others.device)[: int(others_ratio * len(own))]
        rows = torch.cat([own, others[chosen]])
        columns = F.pad(members, (0, 1), value=num_classes + group)
        group_logits = logits.index_select(0, rows).index_select(1, columns)
        loss = loss + F.cross_entropy(group_logits, targets[rows])
    return loss


def group_softmax_probabilities(logits: Tensor, groups: Tensor) -> Tensor:
    """Return the scores of classes and background, merged as in section 4 of the paper.

    A class's score is its probability in its group times that of the foreground. The scores of a
    proposal do not sum to 1.

    Args:
        logits, groups: as for :func:`group_softmax_loss`.

    Returns:
        float32, shape (N, K + 1), background last.
    """
    num_classes = len(groups)
    classes, others, is_foreground = logits.float().tensor_split([num_classes, -2], dim=1)
    members = (torch.where(groups == g, classes, -torch.inf) for g in range(others.shape[1]))
    sums = torch.logaddexp(torch.stack([m.logsumexp(dim=1) for m in members], dim=1), others)
    foreground, background = is_foreground.softmax(dim=1).split(1, dim=1)
    return torch.cat([(classes - sums[:, groups]).exp() * foreground, background], dim=1)


@BOX_CLASS_LOSS_REGISTRY.register()
class BalancedGroupSoftmax(FrequencyLoss):
    """:func:`group_softmax_loss`, and the scores of :func:`group_softmax_probabilities`.

    Checkpoints contain the groups. Class scores: softmax.
    """

    class_scores = ("softmax",)

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        datasets: str | Sequence[str],
        boundaries: Sequence[int] = (10, 100, 1000),
        others_ratio: float = 8.0,
        count: ClassCount = "image_count",
    ):
        """
        Args:
            datasets: registered training datasets, whose class counts define the groups.
            boundaries: smallest counts of the second group, the third, and so on.
            others_ratio: as for :func:`group_softmax_loss`.
            count: see :func:`apa_det.data.class_counts.class_counts`. The paper counts instances.
        """
        super().__init__(num_classes, datasets)
        if list(boundaries) != sorted(set(boundaries)):
            raise UserError(
                "MODEL.ROI_BOX_HEAD.GROUP_SOFTMAX_BOUNDARIES must be strictly increasing, got "
                f"{list(boundaries)}."
            )
        self.boundaries, self.others_ratio, self.count = boundaries, others_ratio, count
        self.num_outputs = num_classes + len(boundaries) + 3
        self.register_buffer("groups", torch.zeros(num_classes, dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            **super().from_config(cfg),
            "boundaries": head.GROUP_SOFTMAX_BOUNDARIES,
            "others_ratio": head.GROUP_SOFTMAX_OTHERS_RATIO,
            "count": head.CLASS_COUNT,
        }

    def compute_class_values(self) -> Tensor:
        counts = class_counts(self.datasets, self.count)
        return torch.bucketize(counts, torch.tensor(list(self.boundaries)), right=True)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None = None) -> Tensor:
        if self.training:
            self.groups.copy_(self.class_values(logits.device))
        return group_softmax_loss(logits, gt_classes, self.groups, self.others_ratio)

    def probabilities(self, logits: Tensor) -> Tensor:
        return group_softmax_probabilities(logits, self.groups)
