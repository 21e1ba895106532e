# The recipe of SE-R101 with ResNeXt-101 64x4d. No results are published for it.
from .mask_rcnn_SE_R_101_FPN_AGLU_GOL_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(num_groups=64, width_per_group=4)
train.init_checkpoint = "pretrained/SE_X-101-64x4d_APA.pth"
