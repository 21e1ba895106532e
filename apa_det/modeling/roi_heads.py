"""RoI heads that predict boxes with :class:`APAFastRCNNOutputLayers`."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from .box_predictor import APAFastRCNNOutputLayers

__all__ = ["APACascadeROIHeads", "APAROIHeads"]


@ROI_HEADS_REGISTRY.register()
class APAROIHeads(StandardROIHeads):
    """detectron2's standard RoI heads with configurable class scores."""

    # Lets torch.jit.script skip absent heads; detectron2 declares this for its own class only.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        heads = super()._init_box_head(_without_fed_loss(cfg), input_shape)
        heads["box_predictor"] = APAFastRCNNOutputLayers(cfg, heads["box_head"].output_shape)
        return heads


@ROI_HEADS_REGISTRY.register()
class APACascadeROIHeads(CascadeROIHeads):
    """detectron2's Cascade R-CNN heads with configurable class scores at every stage."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        heads = super()._init_box_head(_without_fed_loss(cfg), input_shape)
        heads["box_predictors"] = [
            APAFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
            )
            for head, weights in zip(
                heads["box_heads"], cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS, strict=True
            )
        ]
        return heads


def _without_fed_loss(cfg: CfgNode) -> CfgNode:
    """Return a config for detectron2's own predictor, which is replaced afterwards.

    It accepts the federated loss with sigmoid scores only.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    return cfg
