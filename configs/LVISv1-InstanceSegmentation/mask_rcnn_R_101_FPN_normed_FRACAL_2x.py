# Reproduces FRACAL with Mask R-CNN R101: AP 29.9, APr 24.6, APc 29.3, APf 32.8, box AP 29.8. The
# mask head has a fixed temperature.
from .mask_rcnn_R_50_FPN_normed_FRACAL_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.depth = 101
model.roi_heads.mask_head.update(predictor_temperature=20.0, predictor_learn_temperature=False)

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
