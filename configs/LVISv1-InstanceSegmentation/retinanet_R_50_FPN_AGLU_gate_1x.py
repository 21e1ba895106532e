# RetinaNet predicts no masks: APr, APc and APf are box metrics.
from ..common.models.retinanet import model
from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up.update(norm="SyncBN", activation="aglu", gate="se", freeze_at=0)
model.update(num_classes=1203, test_score_thresh=0.0001, max_detections_per_image=300)
dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
