# The published baseline with ReLU, and sigmoid scores of a cosine classifier with temperature 50.
from ..common.models.cascade_rcnn import make_mmdet_cascade
from .faster_rcnn_R_50_FPN_normed_sigmoid_2x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

make_mmdet_cascade(model)
