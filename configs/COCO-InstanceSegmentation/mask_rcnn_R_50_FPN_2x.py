# Baseline with ReLU, with the published schedule for COCO: 24 epochs, steps at epochs 16 and 22,
# 16 images per batch; the 117,266 images with instances give 7,330 iterations per epoch.
#
# Batch norm keeps the ImageNet statistics. The stem and the first stage are frozen. Matching and
# the initialization of the box head are those of mmdetection.
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.models.mmdet_matching import use_mmdet_matching
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

use_mmdet_matching(model, roi_heads=True)
model.roi_heads.box_head.init = "xavier"
model.roi_heads.box_predictor.init = "xavier"

dataloader.train.update(min_image_side=32, min_box_side=1.0)
optimizer.params.weight_decay_norm = 0.0001
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.max_iter = 175920
lr_multiplier = multi_step(175920, (117280, 161260), warmup_iters=500)
