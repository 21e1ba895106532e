# The published ablation with ReLU and the wrapped Cauchy classifier.
from .faster_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.predictor = "wrapped_cauchy"
