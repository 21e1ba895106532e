"""RoI heads that predict boxes with :class:`APAFastRCNNOutputLayers`."""

from typing import Dict, List, Optional, Tuple  # noqa: UP035

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_box_head
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor

from ..errors import UserError
from .box_predictor import APAFastRCNNOutputLayers
from .mask_score import rescore_by_masks
from .matching import build_matcher, jitter_targets, restore_boxes


class JitterMixin:
    """RoI heads that match proposals to jittered copies of repeated ground truth boxes."""

    jitter_repeated_boxes: float = 0.0

    @torch.jit.unused
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As in detectron2. The boxes to regress, and those added as proposals, are the given."""
        if not self.jitter_repeated_boxes:
            return super().label_and_sample_proposals(proposals, targets)
        append_gt = self.proposal_append_gt
        if append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        targets = jitter_targets(targets, self.jitter_repeated_boxes)
        self.proposal_append_gt = False
        try:
            return restore_boxes(super().label_and_sample_proposals(proposals, targets))
        finally:
            self.proposal_append_gt = append_gt


@ROI_HEADS_REGISTRY.register()
class APAROIHeads(JitterMixin, StandardROIHeads):
    """detectron2's standard RoI heads with configurable class scores and matching."""

    # Lets torch.jit.script skip absent heads; detectron2 declares this for its own class only.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @configurable
    def __init__(self, *, jitter_repeated_boxes: float = 0.0, mask_score: bool = False, **kwargs):
        """
        Args:
            jitter_repeated_boxes: in training, match proposals to copies of repeated ground truth
                boxes that are jittered by this amount; see
                :func:`apa_det.modeling.matching.jitter_repeated_boxes`. 0: to the given boxes.
            mask_score: multiply the scores of detections by the maskness of their masks; see
                :func:`apa_det.modeling.mask_score.rescore_by_masks`.
            kwargs: those of :class:`detectron2.modeling.roi_heads.StandardROIHeads`.

        Raises:
            UserError: ``mask_score`` without a mask head.
        """
        super().__init__(**kwargs)
        self.jitter_repeated_boxes = jitter_repeated_boxes
        self.mask_score = mask_score
        require_masks(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        heads = cfg.MODEL.ROI_HEADS
        return {
            **super().from_config(cfg, input_shape),
            "proposal_matcher": build_matcher(
                heads.IOU_THRESHOLDS,
                heads.IOU_LABELS,
                heads.LOW_QUALITY_IOU,
                allow_low_quality_matches=False,
            ),
            "jitter_repeated_boxes": heads.JITTER_REPEATED_BOXES,
            "mask_score": cfg.TEST.MASK_SCORE,
        }

    def forward(
        self,
        images: ImageList,
        features: Dict[str, Tensor],  # noqa: UP006
        proposals: List[Instances],  # noqa: UP006
        targets: Optional[List[Instances]] = None,  # noqa: UP006, UP045
    ) -> Tuple[List[Instances], Dict[str, Tensor]]:  # noqa: UP006
        """As in detectron2, with the scores of the masks."""
        if self.training:
            return self._forward_training(images, features, proposals, targets)
        instances = self._forward_box(features, proposals)
        instances = self.forward_with_given_boxes(features, instances)
        if not torch.jit.is_scripting():
            if self.mask_score and self.mask_on:
                instances = rescore_by_masks(self, instances)
        return instances, {}

    @torch.jit.unused
    def _forward_training(
        self,
        images: ImageList,
        features: Dict[str, Tensor],  # noqa: UP006
        proposals: List[Instances],  # noqa: UP006
        targets: Optional[List[Instances]],  # noqa: UP006, UP045
    ) -> Tuple[List[Instances], Dict[str, Tensor]]:  # noqa: UP006
        return super().forward(images, features, proposals, targets)

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pooler, head_shape = build_box_pooler(cfg, input_shape)
        head = build_box_head(cfg, head_shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": head,
            "box_predictor": APAFastRCNNOutputLayers(cfg, head.output_shape),
        }


def require_masks(heads: StandardROIHeads) -> None:
    """Raise a UserError for RoI heads with ``mask_score`` and without a mask head."""
    if heads.mask_score and not heads.mask_on:
        raise UserError(
            "TEST.MASK_SCORE needs a mask head: set it to False, or MODEL.MASK_ON True."
        )


def build_box_pooler(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """Build the pooler of the box heads, and return the shape of what it gives them."""
    head, size = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    levels = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    pooler = ROIPooler(
        output_size=size,
        scales=tuple(1.0 / level.stride for level in levels),
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=levels[0].channels, height=size, width=size)
