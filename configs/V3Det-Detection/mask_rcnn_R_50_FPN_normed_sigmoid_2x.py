# The published Mask R-CNN for V3Det with masks of SAM, ReLU, and cosine classifiers for boxes and
# masks, with temperature 50. Batches have 24 images, and the learning rate is scaled by 24 / 32.
# Only boxes are evaluated: V3Det val has no masks.
from ..common.models.mask_rcnn_fpn import model as mask_rcnn
from ..common.models.mmdet_matching import use_mmdet_matching
from ..common.schedule import multi_step
from .faster_rcnn_R_50_FPN_normed_sigmoid_2x import (
    dataloader,
    model,
    optimizer,
    train,
)

use_mmdet_matching(model, roi_heads=True)
for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[key] = mask_rcnn.roi_heads[key]
model.roi_heads.mask_head.update(predictor="normed", predictor_temperature=50.0)

dataloader.train.dataset.names = "v3det_train_sam"
dataloader.train.total_batch_size = 24
dataloader.train.mapper.use_instance_mask = True
optimizer.lr = 0.000075
train.max_iter = 183360
lr_multiplier = multi_step(183360, (122240, 168080), warmup_iters=5000, warmup_factor=0.00048828125)
