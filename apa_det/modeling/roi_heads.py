"""RoI heads that predict boxes with :class:`APAFastRCNNOutputLayers`."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_box_head
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from ..errors import UserError
from .box_predictor import APAFastRCNNOutputLayers


@ROI_HEADS_REGISTRY.register()
class APAROIHeads(StandardROIHeads):
    """detectron2's standard RoI heads with configurable class scores."""

    # Lets torch.jit.script skip absent heads; detectron2 declares this for its own class only.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pooler, head_shape = _box_pooler(cfg, input_shape)
        head = build_box_head(cfg, head_shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": head,
            "box_predictor": APAFastRCNNOutputLayers(cfg, head.output_shape),
        }


@ROI_HEADS_REGISTRY.register()
class APACascadeROIHeads(CascadeROIHeads):
    """detectron2's Cascade R-CNN heads with configurable class scores at every stage."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise UserError(
                "APACascadeROIHeads needs class-agnostic boxes: set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True."
            )
        if cascade.IOUS[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
            raise UserError(
                "MODEL.ROI_BOX_CASCADE_HEAD.IOUS must start with "
                f"MODEL.ROI_HEADS.IOU_THRESHOLDS, got {cascade.IOUS[0]} and "
                f"{cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]}."
            )
        pooler, head_shape = _box_pooler(cfg, input_shape)
        heads = [build_box_head(cfg, head_shape) for _ in cascade.IOUS]
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_heads": heads,
            "box_predictors": [
                APAFastRCNNOutputLayers(
                    cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
                )
                for head, weights in zip(heads, cascade.BBOX_REG_WEIGHTS, strict=True)
            ],
            "proposal_matchers": [
                Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in cascade.IOUS
            ],
        }


def _box_pooler(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> tuple[ROIPooler, ShapeSpec]:
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
