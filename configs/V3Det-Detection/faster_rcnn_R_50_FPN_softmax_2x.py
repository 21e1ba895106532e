# Baseline with ReLU and softmax, with the published schedule for V3Det: AdamW, 137,520 iterations,
# 32 images per batch.
#
# Batch norm keeps the ImageNet statistics. The stem and the first stage are frozen. Matching and
# the initialization of the box head are those of mmdetection. Training is in float32; for mixed
# precision, set train.amp.enabled=True.
from ..common.data.v3det import dataloader
from ..common.models.faster_rcnn_fpn import model
from ..common.models.mmdet_matching import use_mmdet_matching
from ..common.optim import AdamW as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model.proposal_generator.update(pre_nms_topk=[4000, 1000], post_nms_topk=[2000, 1000])
use_mmdet_matching(model, roi_heads=False)
model.roi_heads.update(num_classes=13204, jitter_repeated_boxes=0.01)
model.roi_heads.box_head.init = "xavier"
model.roi_heads.box_predictor.update(
    init="xavier",
    cls_agnostic_bbox_reg=True,
    test_score_thresh=0.0001,
    test_nms_thresh=0.6,
    test_topk_per_image=300,
)

dataloader.train.update(repeat_rounding="up", min_image_side=4, min_box_side=1.0)
optimizer.params.weight_decay_norm = 0.1
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.max_iter = 137520
train.clip_gradients.update(clip_type="full_model", clip_value=35.0)
lr_multiplier = multi_step(137520, (91680, 126060), warmup_iters=5000, warmup_factor=0.00048828125)
