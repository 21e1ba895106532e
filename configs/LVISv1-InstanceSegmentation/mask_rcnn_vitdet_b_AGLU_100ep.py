# ViTDet-B with detectron2's schedule for LVIS (64 images per batch, scale jitter to 1024 pixels),
# with AGLU instead of GELU, and APA as the class score. AGLU starts close to GELU (λ = 1,
# κ = 1.702), with which the backbone was pretrained. Needs timm.
from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from apa_det import AGLU
from apa_det.modeling import APAFastRCNNOutputLayers, APAROIHeads

from ..common.data.lvis_v1 import dataloader
from ..common.optim import AdamW as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone.net.act_layer = partial(AGLU, lambda_range=(1.0, 1.0), kappa_range=(1.702, 1.702))
model.roi_heads.update(_target_=APAROIHeads, num_classes=1203)
model.roi_heads.box_predictor.update(
    _target_=APAFastRCNNOutputLayers,
    class_score="apa",
    test_score_thresh=0.0001,
    test_topk_per_image=300,
)

dataloader.train.total_batch_size = 64
dataloader.train.mapper.update(
    augmentations=[
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=1024, target_width=1024),
        L(T.FixedSizeCrop)(crop_size=(1024, 1024), pad=False),
    ],
    recompute_boxes=True,
)
dataloader.test.mapper.augmentations[0].update(short_edge_length=1024, max_size=1024)

optimizer.lr = 0.0002
optimizer.params.update(
    lr_factor_func=partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7),
    overrides={
        "pos_embed": {"weight_decay": 0.0},
        "lambda_param": {"weight_decay": 0.0},
        "kappa_param": {"weight_decay": 0.0},
    },
)

train.init_checkpoint = (
    "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
)
train.max_iter = 156250
train.amp.enabled = True
train.ddp.fp16_compression = True
lr_multiplier = multi_step(156250, (138889, 150463), warmup_iters=250)
