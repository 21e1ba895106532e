# Reproduces the effective class-margin loss with Mask R-CNN R50 (Cho and Krähenbühl, ECCV 2022):
# AP 27.5. Steps at epochs 20 and 22, and a long warm-up.
from detectron2.config import LazyCall as L

from apa_det.modeling.losses import EffectiveClassMarginLoss

from ..common.schedule import multi_step
from .mask_rcnn_R_50_FPN_softmax_2x import dataloader, model, optimizer, train

model.roi_heads.box_predictor.update(
    class_score="sigmoid",
    class_loss=L(EffectiveClassMarginLoss)(
        num_classes="${..num_classes}", datasets="${dataloader.train.dataset.names}"
    ),
    predictor="normed",
    predictor_temperature=20.0,
)
model.roi_heads.mask_head.update(predictor="normed", predictor_temperature=20.0)

train.clip_gradients.update(clip_type="full_model", clip_value=5.0)
lr_multiplier = multi_step(184176, (153480, 168828), warmup_iters=10000, warmup_factor=0.0001)
