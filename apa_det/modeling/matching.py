"""Matching of boxes to ground truth as in mmdetection, for published recipes.

It differs from detectron2's in two respects, both off by default: low-quality matches, and ground
truth boxes that occur several times in an image.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_iou

from ..errors import UserError


class LowQualityMatcher(Matcher):
    """detectron2's matcher, with low-quality matches as in mmdetection.

    Each ground truth box also gets the predictions that overlap most with it, if their IoU is at
    least ``min_quality``. This replaces their other match; among several such ground truth boxes,
    the last one gets the prediction. In detectron2, a low-quality match has no minimum, and a
    prediction keeps the ground truth box with which it overlaps most.

    Args:
        thresholds, labels: as in :class:`detectron2.modeling.matcher.Matcher`.
        min_quality: minimum IoU of a low-quality match, in (0, 1].

    Raises:
        UserError: ``min_quality`` is out of range.
    """

    def __init__(self, thresholds: list[float], labels: list[int], *, min_quality: float):
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        if not 0 < min_quality <= 1:
            raise UserError(
                f"LOW_QUALITY_IOU (min_quality of a matcher) must be in (0, 1], got {min_quality}."
            )
        self.min_quality = min_quality

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """As in detectron2: map IoU of shape (M, N) to indices and labels of shape (N,)."""
        matches, labels = super().__call__(match_quality_matrix)
        if not match_quality_matrix.numel():
            return matches, labels
        best = match_quality_matrix.amax(dim=1, keepdim=True)
        is_best = (match_quality_matrix == best) & (best >= self.min_quality)
        truths, predictions = is_best.nonzero(as_tuple=True)
        last = torch.full_like(matches, -1).scatter_reduce(0, predictions, truths, "amax")
        labels[last >= 0] = 1
        return torch.where(last >= 0, last, matches), labels


def build_matcher(
    thresholds: list[float],
    labels: list[int],
    low_quality_iou: float | None,
    *,
    allow_low_quality_matches: bool,
) -> Matcher:
    """Return detectron2's matcher if ``low_quality_iou`` is None, else a LowQualityMatcher."""
    if low_quality_iou is None:
        return Matcher(thresholds, labels, allow_low_quality_matches=allow_low_quality_matches)
    return LowQualityMatcher(thresholds, labels, min_quality=low_quality_iou)


@PROPOSAL_GENERATOR_REGISTRY.register()
class APARPN(RPN):
    """detectron2's RPN with the low-quality matches of ``MODEL.RPN.LOW_QUALITY_IOU``."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        rpn = cfg.MODEL.RPN
        matcher = build_matcher(
            rpn.IOU_THRESHOLDS,
            rpn.IOU_LABELS,
            rpn.LOW_QUALITY_IOU,
            allow_low_quality_matches=True,
        )
        return {**super().from_config(cfg, input_shape), "anchor_matcher": matcher}


def jitter_repeated_boxes(boxes: Tensor, amount: float) -> Tensor:
    """Multiply the coordinates of boxes that occur several times by random factors.

    So predictions are matched to all of the repeated boxes, not only to the first. The factors are
    uniform in 1 ± ``amount``. They are drawn again, up to 5 times, unless all copies of a box have
    positive sides and overlap with it with an IoU of at least 0.7; after the first draw, of at
    least 0.97. After draw k, ``amount`` decreases by 0.001 · (k − 1), to at least 0.001.

    Args:
        boxes: shape (M, 4), as corners.
        amount: half of the width of the distribution.

    Returns:
        Shape (M, 4).
    """
    result = boxes.clone()
    unique, group, counts = boxes.unique(dim=0, return_inverse=True, return_counts=True)
    for k in (counts > 1).nonzero().flatten().tolist():
        box, rows = unique[k], (group == k).nonzero().flatten()
        result[rows] = _jitter_copies(box.expand(len(rows), 4), amount)
    return result


def _jitter_copies(boxes: Tensor, amount: float) -> Tensor:
    min_iou = 0.7
    for draw in range(6):
        jittered = boxes * torch.empty_like(boxes).uniform_(1 - amount, 1 + amount)
        positive = (jittered[:, 2:] > jittered[:, :2]).all()
        if positive and (box_iou(boxes[:1], jittered) >= min_iou).all():
            break
        amount, min_iou = max(amount - 0.001 * draw, 0.001), 0.97
    return jittered


def jitter_targets(targets: list[Instances], amount: float) -> list[Instances]:
    """Return targets with jittered ``gt_boxes``, and the given boxes as ``gt_given_boxes``."""
    result = []
    for target in targets:
        fields = target.get_fields()
        boxes = fields["gt_boxes"]
        jittered = Boxes(jitter_repeated_boxes(boxes.tensor, amount))
        fields = {**fields, "gt_boxes": jittered, "gt_given_boxes": boxes}
        result.append(Instances(target.image_size, **fields))
    return result


def restore_boxes(proposals: list[Instances]) -> list[Instances]:
    """Undo the jitter in proposals that were matched to :func:`jitter_targets`."""
    for proposal in proposals:
        if proposal.has("gt_given_boxes"):
            proposal.gt_boxes = proposal.gt_given_boxes
            proposal.remove("gt_given_boxes")
    return proposals
