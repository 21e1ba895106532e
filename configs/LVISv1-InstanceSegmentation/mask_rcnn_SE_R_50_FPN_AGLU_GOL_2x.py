# Reproduces Mask R-CNN SE-R50 with AGLU, APA gates, GOL and DropLoss (Alexandridis et al., ECCV
# 2024): AP 29.1, APr 21.6, APc 29.8, APf 31.9, box AP 29.1.
# train.init_checkpoint is the authors' ImageNet checkpoint, converted by
# tools/convert_checkpoint.py.
from detectron2.config import LazyCall as L

from apa_det.modeling.losses import DropLoss

from .mask_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(activation="aglu", gate="se")
model.roi_heads.box_head.init = "torch"
model.roi_heads.box_predictor.update(
    init="torch",
    class_score="gumbel",
    predictor_weight_init=0.001,
    predictor_bias_init=-2.0,
    logit_clamp=10.0,
    class_loss=L(DropLoss)(
        num_classes="${..num_classes}", datasets="${dataloader.train.dataset.names}"
    ),
    test_nms_thresh=0.3,
)
model.roi_heads.mask_head.update(
    upsample="carafe",
    predictor="normed",
    predictor_temperature=20.25,
    predictor_learn_temperature=True,
    mask_threshold=0.4,
)

train.init_checkpoint = "pretrained/SE_R-50_APA.pth"
