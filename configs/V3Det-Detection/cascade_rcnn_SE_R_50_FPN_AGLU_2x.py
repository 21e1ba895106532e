# Reproduces Cascade R-CNN SE-R50 of the same paper: box AP 35.4. The last weights of the boxes are
# those of the authors' framework, which rounds their inverses, 0.033 and 0.067.
from ..common.models.cascade_rcnn import make_cascade
from .faster_rcnn_SE_R_50_FPN_AGLU_2x import dataloader, lr_multiplier, model, optimizer, train

make_cascade(
    model,
    bbox_reg_weights=(
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.303030303, 30.303030303, 14.925373134, 14.925373134),
    ),
)
