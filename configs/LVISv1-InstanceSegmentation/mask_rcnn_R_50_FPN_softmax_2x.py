# Baseline with ReLU and softmax, with the published schedule for LVIS v1: 24 epochs of 7,674
# iterations (see Base-LVISv1-2x.yaml), steps at epochs 16 and 22, 16 images per batch.
#
# Batch norm keeps the ImageNet statistics. The stem and the first stage are frozen.
from ..common.schedule import multi_step
from .mask_rcnn_R_50_FPN_1x import dataloader, model, optimizer, train

model.backbone.bottom_up.update(norm="EvalBN", freeze_at=2)

optimizer.params.weight_decay_norm = 0.0001
train.max_iter = 184176
train.amp.enabled = True
lr_multiplier = multi_step(184176, (122784, 168828), warmup_iters=500)
