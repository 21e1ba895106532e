# Reproduces Mask R-CNN SE-R50 on COCO with AGLU and APA gates (Alexandridis et al., ECCV 2024),
# with standard heads.
# train.init_checkpoint is the authors' ImageNet checkpoint, converted by
# tools/convert_checkpoint.py.
from .mask_rcnn_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(activation="aglu", gate="se")
train.init_checkpoint = "pretrained/SE_R-50_APA.pth"
