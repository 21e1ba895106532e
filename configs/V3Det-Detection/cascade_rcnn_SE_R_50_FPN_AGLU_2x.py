# Reproduces Cascade R-CNN SE-R50 (Alexandridis et al., ECCV 2024): box AP 35.4. The last box
# regression weights are the inverses of the authors' rounded 0.033 and 0.067.
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
