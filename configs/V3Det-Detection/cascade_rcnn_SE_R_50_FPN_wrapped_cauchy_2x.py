# The published baseline with ReLU, the original SE gates, and the wrapped Cauchy classifier.
# train.init_checkpoint is an ImageNet checkpoint of this backbone, from
# apa-det pretrain --model apa_resnet50 --activation relu --gate plain_se
from ..common.models.cascade_rcnn import make_mmdet_cascade
from .faster_rcnn_SE_R_50_FPN_wrapped_cauchy_2x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

make_mmdet_cascade(model)
