# Reproduces Cascade R-CNN SE-R50 (Alexandridis et al., ECCV 2024): box AP 35.4.
# train.init_checkpoint is the authors' ImageNet checkpoint, converted by
# tools/convert_checkpoint.py.
from ..common.models.cascade_rcnn import make_mmdet_cascade
from .faster_rcnn_SE_R_50_FPN_AGLU_2x import dataloader, lr_multiplier, model, optimizer, train

make_mmdet_cascade(model)
