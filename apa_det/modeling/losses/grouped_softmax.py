"""Balanced group softmax: a softmax for each group of classes of similar frequency."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...data.class_counts import ClassCount, class_counts
from .base import BOX_CLASS_LOSS_REGISTRY, Curve, FrequencyLoss

__all__ = ["BalancedGroupSoftmax", "group_softmax_loss", "group_softmax_probabilities"]


def group_softmax_loss(
    logits: Tensor, gt_classes: Tensor, groups: Tensor, others_ratio: float = 8.0
) -> Tensor:
    """The cross-entropies of the groups' softmaxes, summed.

    "Overcoming Classifier Imbalance for Long-tail Object Detection with Balanced Group Softmax" (Li
    et al., CVPR 2020, section 4). G groups of classes have an output more, for proposals of none of
    their classes, "others"; one group more tells foreground from background. Each cross-entropy is
    a mean: that of foreground and background over all proposals, that of another group over the
    proposals of its classes and a random choice of others. A group without proposals gives none.

    Args:
        logits: shape (N, K + G + 2): the classes, the G "others", foreground, background.
        gt_classes: shape (N,), K for the background.
        groups: int64, shape (K,), the group of each class, from 0 to G − 1.
        others_ratio: the others that are chosen, at most, for each proposal of a group's classes.

    Returns:
        A scalar; 0 without proposals.
    """
    num_classes = len(groups)
    num_groups = logits.shape[1] - num_classes - 2
    is_background = (gt_classes == num_classes).long()
    loss = F.cross_entropy(logits[:, -2:], is_background, reduction="sum") / max(len(logits), 1)
    for group in range(num_groups):
        members = (groups == group).nonzero()[:, 0]
        place = gt_classes.new_full((num_classes + 1,), len(members))  # of "others"
        place[members] = torch.arange(len(members), device=place.device)
        targets = place[gt_classes]
        ours = (targets < len(members)).nonzero()[:, 0]
        if len(ours) == 0:
            continue
        others = (targets == len(members)).nonzero()[:, 0]
        chosen = torch.randperm(len(others), device=others.device)[: int(others_ratio * len(ours))]
        rows = torch.cat([ours, others[chosen]])
        columns = F.pad(members, (0, 1), value=num_classes + group)
        of_group = logits.index_select(0, rows).index_select(1, columns)
        loss = loss + F.cross_entropy(of_group, targets[rows])
    return loss


def group_softmax_probabilities(logits: Tensor, groups: Tensor) -> Tensor:
    """The scores of classes and background, merged as in section 4 of the paper.

    A class's is its score in its group times that of the foreground. The scores of a proposal do
    not sum to 1.

    Args:
        logits, groups: as for :func:`group_softmax_loss`.

    Returns:
        float32, shape (N, K + 1), the background last.
    """
    num_classes = len(groups)
    classes, others, is_foreground = logits.float().tensor_split([num_classes, -2], dim=1)
    sums = [
        torch.where(groups == group, classes, -torch.inf).logsumexp(dim=1)
        for group in range(others.shape[1])
    ]
    sums = torch.logaddexp(torch.stack(sums, dim=1), others)
    foreground, background = is_foreground.softmax(dim=1).split(1, dim=1)
    return torch.cat([(classes - sums[:, groups]).exp() * foreground, background], dim=1)


@BOX_CLASS_LOSS_REGISTRY.register()
class BalancedGroupSoftmax(FrequencyLoss):
    """:func:`group_softmax_loss`, and the scores of :func:`group_softmax_probabilities`.

    The groups are part of checkpoints. Class scores: softmax.
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
            num_classes: K, the number of foreground classes.
            datasets: the registered training datasets, by whose class counts classes are grouped.
            boundaries: the counts from which on a class is in the second group, the third ...
            others_ratio: as for :func:`group_softmax_loss`.
            count: what is counted; see :func:`apa_det.data.class_counts.class_counts`. The paper
                counts instances.
        """
        super().__init__(num_classes, datasets)
        if list(boundaries) != sorted(set(boundaries)):
            raise ValueError(f"The boundaries of the groups ascend, unlike {list(boundaries)}.")
        self.boundaries = boundaries
        self.others_ratio = others_ratio
        self.count = count
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

    def from_datasets(self) -> Tensor:
        counts = class_counts(self.datasets, self.count)
        return torch.bucketize(counts, torch.tensor(list(self.boundaries)), right=True)

    def forward(self, logits: Tensor, gt_classes: Tensor, curve: Curve | None = None) -> Tensor:
        if self.training:
            self.groups.copy_(self.of_classes(logits.device))
        return group_softmax_loss(logits, gt_classes, self.groups, self.others_ratio)

    def probabilities(self, logits: Tensor) -> Tensor:
        return group_softmax_probabilities(logits, self.groups)
