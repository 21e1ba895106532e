# Cascade R-CNN baseline with ReLU and softmax. The last box regression weights are the inverses of
# mmdetection's rounded 0.033 and 0.067. As in mmdetection, the logits of the stages are averaged,
# the losses of later stages weigh less, and anchors beyond the image are not used.
from ..common.models.cascade_rcnn import make_mmdet_cascade
from .faster_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

make_mmdet_cascade(model)
