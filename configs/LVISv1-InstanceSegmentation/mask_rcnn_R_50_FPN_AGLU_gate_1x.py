# Step 2: add a channel attention gate with APA to every block.
from .mask_rcnn_R_50_FPN_AGLU_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.gate = "se"
