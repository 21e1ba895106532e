# Baseline with ReLU and softmax, with the published schedule for LVIS v1: 24 epochs of 7,674
# iterations (see Base-LVISv1-2x.yaml), steps at epochs 16 and 22, 16 images per batch.
#
# Batch norm keeps the ImageNet statistics. The stem and the first stage are frozen. Matching and
# the initialization of the box head are those of mmdetection. Training is in float32; for mixed
# precision, set train.amp.enabled=True.
from ..common.models.mmdet_matching import use_mmdet_matching
from ..common.schedule import multi_step
from .mask_rcnn_R_50_FPN_1x import dataloader, model, optimizer, train

model.backbone.bottom_up.update(norm="EvalBN", freeze_at=2)
use_mmdet_matching(model, roi_heads=True)
model.roi_heads.box_head.init = "xavier"
model.roi_heads.box_predictor.init = "xavier"

dataloader.train.update(repeat_rounding="up", min_image_side=32, min_box_side=1.0)
optimizer.params.weight_decay_norm = 0.0001
train.max_iter = 184176
lr_multiplier = multi_step(184176, (122784, 168828), warmup_iters=500)
