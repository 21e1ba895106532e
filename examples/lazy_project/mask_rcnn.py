# detectron2's Mask R-CNN with APA in its backbone and in the mask head, on the dataset of
# `make quickstart`, for train_net.py in this folder.
import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from apa_det.data import build_train_loader
from apa_det.evaluation import LongTailEvaluator
from apa_det.modeling import injected, make_apa_resnet

mask_rcnn = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
mask_rcnn.backbone.bottom_up = L(make_apa_resnet)(
    depth=18,
    norm="BN",
    activation="aglu",
    gate="se",
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=0,
)
mask_rcnn.backbone.update(out_channels=64, norm="BN")
mask_rcnn.proposal_generator.head.in_channels = 64
mask_rcnn.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [144]]
mask_rcnn.proposal_generator.update(pre_nms_topk=[300, 300], post_nms_topk=[200, 100])
mask_rcnn.roi_heads.update(num_classes=16, batch_size_per_image=64)
mask_rcnn.roi_heads.box_head.update(
    input_shape=ShapeSpec(channels=64, height=7, width=7), fc_dims=[256, 256]
)
mask_rcnn.roi_heads.box_predictor.update(
    input_shape=ShapeSpec(channels=256), test_score_thresh=0.0001
)
mask_rcnn.roi_heads.mask_head.update(
    input_shape=ShapeSpec(channels=64, width=14, height=14), conv_dims=[64, 64, 64]
)
model = L(injected)(model=mask_rcnn, names="roi_heads.mask_head.*")

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.lvis_format = [
    ["quickstart_train", "datasets/quickstart/train.json", "datasets/quickstart"],
    ["quickstart_val", "datasets/quickstart/val.json", "datasets/quickstart"],
]
dataloader.train._target_ = build_train_loader
dataloader.train.dataset.names = "quickstart_train"
dataloader.train.update(
    sampler="ClassAwareTrainingSampler",
    dataset_names="${.dataset.names}",
    total_batch_size=8,
    num_workers=0,
)
dataloader.train.mapper.update(
    augmentations=[
        L(T.ResizeShortestEdge)(short_edge_length=[160], max_size=1333, sample_style="choice"),
        L(T.RandomFlip)(horizontal=True),
    ],
    use_instance_mask=True,
)
dataloader.test.dataset.names = "quickstart_val"
dataloader.test.num_workers = 0
dataloader.test.mapper.augmentations[0].short_edge_length = 160
dataloader.evaluator = L(LongTailEvaluator)(dataset_name="${..test.dataset.names}")

# detectron2's AdamW; λ and κ have no weight decay and half the learning rate
optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 0.0005
optimizer.params.base_lr = "${..lr}"
optimizer.params.overrides = {
    name: {"lr": 0.00025, "weight_decay": 0.0} for name in ("lambda_param", "kappa_param")
}

train = model_zoo.get_config("common/train.py").train
train.update(init_checkpoint="", max_iter=240, eval_period=0, output_dir="output/lazy_project")
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[180, 220], num_updates=240
    ),
    warmup_length=50 / 240,
    warmup_factor=0.001,
)
