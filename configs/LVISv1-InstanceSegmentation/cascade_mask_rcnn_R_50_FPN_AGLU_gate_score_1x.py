from ..common.models.cascade_rcnn import make_cascade
from .mask_rcnn_R_50_FPN_AGLU_gate_score_1x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.roi_heads.box_predictor.cls_agnostic_bbox_reg = True
make_cascade(model)
model.proposal_generator.post_nms_topk = [2000, 1000]
