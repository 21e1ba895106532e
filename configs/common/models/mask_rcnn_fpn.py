# detectron2's Mask R-CNN with FPN, with apa_det's backbone and heads.
from detectron2 import model_zoo

from apa_det.modeling import (
    APAFastRCNNConvFCHead,
    APAFastRCNNOutputLayers,
    APAMaskRCNNConvUpsampleHead,
    APAROIHeads,
)

from .resnet import bottom_up

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.update(
    input_format="RGB",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
model.backbone.bottom_up = bottom_up
model.roi_heads._target_ = APAROIHeads
model.roi_heads.box_head._target_ = APAFastRCNNConvFCHead
model.roi_heads.box_predictor._target_ = APAFastRCNNOutputLayers
model.roi_heads.mask_head._target_ = APAMaskRCNNConvUpsampleHead
