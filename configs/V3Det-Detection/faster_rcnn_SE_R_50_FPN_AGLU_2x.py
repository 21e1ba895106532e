# Reproduces Faster R-CNN SE-R50 with AGLU, APA gates and the wrapped Cauchy classifier
# (Alexandridis et al., ECCV 2024): box AP 29.9.
# train.init_checkpoint is the authors' ImageNet checkpoint, converted by
# tools/convert_checkpoint.py.
from .faster_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(activation="aglu", gate="se")
model.roi_heads.box_predictor.predictor = "wrapped_cauchy"
train.init_checkpoint = "pretrained/SE_R-50_APA.pth"
