# AGLU instead of every ReLU: in backbone, RPN, box head and mask head. Initially it differs from
# ReLU by at most 0.014: ImageNet weights keep working, and λ and κ still learn (closer to ReLU they
# hardly do).
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(injected)(model=model, lambda_range=(1.0, 1.0), kappa_range=(20.0, 20.0))
