from apa_det.modeling import APARetinaNet

from .retinanet_R_50_FPN_AGLU_gate_1x import dataloader, lr_multiplier, model, optimizer, train

model._target_ = APARetinaNet
model.class_score = "apa"
