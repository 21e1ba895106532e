# Reproduces the effective class-margin loss with Mask R-CNN R101: AP 28.7.
from .mask_rcnn_R_50_FPN_normed_ECM_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.depth = 101

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
