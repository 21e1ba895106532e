# RetinaNet with AGLU also in the head and in the P6 and P7 layers.
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from .retinanet_R_50_FPN_AGLU_gate_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(injected)(model=model, names=["head.*", "backbone.top_block.*"])
