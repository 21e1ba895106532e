# AGLU in the place of every ReLU: in backbone, RPN, box head and mask head. It starts as close to
# ReLU as it can, so the ImageNet weights go on working.
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(injected)(model=model, like="replaced")
