# Reproduces Mask R-CNN SE-R101 (Alexandridis et al., ECCV 2024): AP 30.7, APr 23.6, APc 31.3,
# APf 33.1, box AP 31.1.
from .mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.depth = 101
train.init_checkpoint = "pretrained/SE_R-101_APA.pth"
