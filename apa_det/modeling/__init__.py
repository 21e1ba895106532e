from .box_head import APAFastRCNNConvFCHead
from .box_predictor import APAFastRCNNOutputLayers
from .mask_head import APAMaskRCNNConvUpsampleHead
from .resnet import (
    APABasicBlock,
    APABasicStem,
    APABottleneckBlock,
    APADeformBottleneckBlock,
    build_apa_resnet_backbone,
    build_apa_resnet_fpn_backbone,
    build_apa_retinanet_resnet_fpn_backbone,
)
from .roi_heads import APACascadeROIHeads, APAROIHeads

__all__ = [
    "APABasicBlock",
    "APABasicStem",
    "APABottleneckBlock",
    "APACascadeROIHeads",
    "APADeformBottleneckBlock",
    "APAFastRCNNConvFCHead",
    "APAFastRCNNOutputLayers",
    "APAMaskRCNNConvUpsampleHead",
    "APAROIHeads",
    "build_apa_resnet_backbone",
    "build_apa_resnet_fpn_backbone",
    "build_apa_retinanet_resnet_fpn_backbone",
]
