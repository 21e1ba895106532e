# The baseline with ReLU, by the published schedule for COCO: 24 epochs, steps at 16 and 22, 16
# pictures a batch; the 117,266 pictures with instances make 7,330 iterations an epoch.
#
# Batch norm keeps the statistics of ImageNet, and stem and first stage are frozen.
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

optimizer.params.weight_decay_norm = 0.0001
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.max_iter = 175920
lr_multiplier = multi_step(175920, (117280, 161260), warmup_iters=500)
