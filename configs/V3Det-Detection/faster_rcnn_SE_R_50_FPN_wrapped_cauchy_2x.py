# The published baseline with ReLU, the original SE gates, and the wrapped Cauchy classifier.
# train.init_checkpoint is an ImageNet checkpoint of this backbone, from
# apa-det pretrain --model apa_resnet50 --activation relu --gate plain_se
from .faster_rcnn_R_50_FPN_wrapped_cauchy_2x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.gate = "plain_se"
train.init_checkpoint = "pretrained/SE_R-50.pth"
