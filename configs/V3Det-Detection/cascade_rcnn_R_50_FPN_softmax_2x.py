# Cascade R-CNN baseline with ReLU and softmax.
from ..common.models.cascade_rcnn import make_cascade
from .faster_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

make_cascade(model)
