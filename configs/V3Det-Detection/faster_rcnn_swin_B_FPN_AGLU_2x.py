# The published Faster R-CNN with Swin-B, AGLU in the MLPs instead of GELU, and the wrapped Cauchy
# classifier. λ and κ start as published for Swin: U(0.1, 1) and U(0, 1). train.init_checkpoint is
# an ImageNet checkpoint of this backbone with AGLU, which is not published. Needs timm.
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.swin import SwinTransformer

from apa_det.modeling import injected

from .faster_rcnn_R_50_FPN_wrapped_cauchy_2x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = L(SwinTransformer)(
    embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], drop_path_rate=0.3
)
model.backbone.in_features = ["p0", "p1", "p2", "p3"]
model = L(injected)(
    model=model,
    names=["backbone.bottom_up.layers.*.mlp.act"],
    lambda_range=(0.1, 1.0),
    kappa_range=(0.0, 1.0),
    lambda_min=1e-8,
)
train.init_checkpoint = "pretrained/Swin-B_AGLU.pth"
