# Reproduces Mask R-CNN SE-R101 (Alexandridis et al., ECCV 2024): AP 30.7, APr 23.6, APc 31.3,
# APf 33.1, box AP 31.1. Unlike that of SE-R50, its mask head has a deconvolution, and the
# temperature of its predictor is fixed.
from .mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.depth = 101
model.roi_heads.mask_head.update(
    upsample="deconv", predictor_temperature=20.0, predictor_learn_temperature=False
)
train.init_checkpoint = "pretrained/SE_R-101_APA.pth"
