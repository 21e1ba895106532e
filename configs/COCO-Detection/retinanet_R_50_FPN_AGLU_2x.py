# RetinaNet with AGLU instead of ReLU, except in frozen layers. Initially AGLU differs from ReLU by
# at most 0.014: ImageNet weights keep working, and λ and κ still learn (closer to ReLU they hardly
# do).
from detectron2.config import LazyCall as L

from apa_det.modeling import injected

from ..common.data.coco import dataloader
from ..common.models.retinanet import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model = L(injected)(
    model=model,
    names=["backbone.bottom_up.res[345].*", "backbone.top_block.*", "head.*"],
    lambda_range=(1.0, 1.0),
    kappa_range=(20.0, 20.0),
)
dataloader.train.mapper.use_instance_mask = False
dataloader.train.update(min_image_side=32, min_box_side=1.0)
optimizer.lr = 0.01
optimizer.params.weight_decay_norm = 0.0001
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.max_iter = 175920
lr_multiplier = multi_step(175920, (117280, 161260), warmup_iters=500)
