# Mask R-CNN with large-scale jitter, copy-paste of rare classes first, and the federated loss, with
# detectron2's schedule of 100 epochs (64 images per batch). As in the copy-paste paper, both the
# image and what is pasted into it are jittered.
from detectron2.config import LazyCall as L

from apa_det.data import large_scale_jitter
from apa_det.modeling.losses.federated import frequency_weights

from ..common.schedule import multi_step
from .mask_rcnn_R_50_FPN_1x import dataloader, model, optimizer, train

model.roi_heads.box_predictor.update(
    class_score="sigmoid",
    use_fed_loss=True,
    get_fed_loss_cls_weights=L(frequency_weights)(datasets="${dataloader.train.dataset.names}"),
)

dataloader.train.total_batch_size = 64
dataloader.train.mapper.update(
    augmentations=[L(large_scale_jitter)(size=1024, scale=(0.1, 2.0))],
    recompute_boxes=True,
)
dataloader.train.copy_paste = dict(enabled=True, scale=[1.0, 1.0])

optimizer.lr = 0.08

train.max_iter = 156250
lr_multiplier = multi_step(156250, (138889, 150463))
