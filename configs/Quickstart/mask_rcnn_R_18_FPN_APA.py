# A small APA Mask R-CNN, trained from random weights on a synthetic dataset within minutes on two
# CPU cores. Generate it with `tools/prepare_dataset.py synthetic --output datasets/quickstart`.
from detectron2.layers import ShapeSpec

from ..common.data.lvis_v1 import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model.backbone.bottom_up.update(depth=18, norm="BN", activation="aglu", gate="se", freeze_at=0)
model.backbone.update(out_channels=64, norm="BN")
model.proposal_generator.head.in_channels = 64
model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [144]]
model.proposal_generator.update(pre_nms_topk=[300, 300], post_nms_topk=[200, 100])
model.roi_heads.update(num_classes=16, batch_size_per_image=64)
model.roi_heads.box_head.update(
    input_shape=ShapeSpec(channels=64, height=7, width=7), fc_dims=[256, 256]
)
model.roi_heads.box_predictor.update(
    input_shape=ShapeSpec(channels=256),
    class_score="apa",
    test_score_thresh=0.0001,
    test_topk_per_image=100,
)
model.roi_heads.mask_head.update(
    input_shape=ShapeSpec(channels=64, width=14, height=14), conv_dims=[64, 64, 64]
)

dataloader.lvis_format = [
    ["quickstart_train", "datasets/quickstart/train.json", "datasets/quickstart"],
    ["quickstart_val", "datasets/quickstart/val.json", "datasets/quickstart"],
]
dataloader.train.dataset.names = "quickstart_train"
dataloader.test.dataset.names = "quickstart_val"
dataloader.train.update(repeat_thresh=0.1, total_batch_size=8, num_workers=0)
dataloader.train.mapper.augmentations[0].short_edge_length = [160]
dataloader.test.mapper.augmentations[0].short_edge_length = 160
dataloader.test.num_workers = 0

train.max_iter = 240
train.clip_gradients.update(clip_type="norm", clip_value=5.0)
lr_multiplier = multi_step(240, (180, 220), warmup_iters=50)
