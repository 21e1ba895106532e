# Baseline on LVIS v1: detectron2's Mask R-CNN, 16 images per batch. The backbone starts from
# torchvision's ImageNet weights, which were trained with ReLU. So nothing is frozen, and batch norm
# updates its statistics.
from ..common.data.lvis_v1 import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model.backbone.bottom_up.update(norm="SyncBN", freeze_at=0)
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor.update(test_score_thresh=0.0001, test_topk_per_image=300)

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.max_iter = 180000
lr_multiplier = multi_step(180000, (120000, 160000))
