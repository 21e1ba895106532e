# Step 1: AGLU in the place of the backbone's ReLU.
from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.activation = "aglu"
