# Step 1: replace ReLU by AGLU in the backbone.
from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.activation = "aglu"
