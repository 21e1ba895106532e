# FCOS with AGLU instead of ReLU in backbone and head. Initially AGLU differs from ReLU by at most
# 0.014: ImageNet weights keep working, and λ and κ still learn (closer to ReLU they hardly do).
# detectron2 has FCOS only as a lazy config.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from ..common.models.resnet import bottom_up
from .retinanet_R_50_FPN_AGLU_gate_1x import dataloader, lr_multiplier, optimizer, train

fcos = model_zoo.get_config("common/models/fcos.py").model
fcos.update(
    num_classes=1203,
    test_score_thresh=0.0001,
    max_detections_per_image=300,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
bottom_up.update(norm="SyncBN", freeze_at=0, out_features=["res3", "res4", "res5"])
fcos.backbone.bottom_up = bottom_up
model = L(injected)(model=fcos, lambda_range=(1.0, 1.0), kappa_range=(20.0, 20.0))
