# Reproduces Mask R-CNN SE-R50 on COCO with AGLU and APA gates (Alexandridis et al., ECCV 2024),
# with standard heads. As published, it starts from torchvision's ResNet-50, which was trained with
# ReLU and without gates. AGLUs and gates start from random values, those of the frozen first stage
# too.
from .mask_rcnn_R_50_FPN_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(activation="aglu", gate="se")
