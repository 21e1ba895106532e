# RetinaNet with AGLU in its head and in the layers for P6 and P7 too.
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from .retinanet_R_50_FPN_AGLU_gate_1x import dataloader, lr_multiplier, model, optimizer, train

model = L(injected)(model=model, names=["head.*", "backbone.top_block.*"])
