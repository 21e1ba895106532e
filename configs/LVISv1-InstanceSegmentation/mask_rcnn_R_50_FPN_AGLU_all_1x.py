# AGLU in the place of every ReLU: in backbone, RPN, box head and mask head. It starts within 0.014
# of ReLU, so the ImageNet weights go on working, and λ and κ learn; closer, they hardly would.
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(injected)(model=model, lambda_range=(1.0, 1.0), kappa_range=(20.0, 20.0))
