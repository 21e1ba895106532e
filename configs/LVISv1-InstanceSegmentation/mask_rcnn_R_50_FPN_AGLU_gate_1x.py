# Step 2: and a channel attention gate with APA in every block.
from .mask_rcnn_R_50_FPN_AGLU_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.gate = "se"
