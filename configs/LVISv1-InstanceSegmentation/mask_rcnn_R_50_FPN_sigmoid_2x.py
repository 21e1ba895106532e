# Baseline with ReLU and sigmoid, initialized as in the GOL paper.
from .mask_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.update(
    class_score="sigmoid", predictor_weight_init=0.001, predictor_bias_init=-6.5
)
