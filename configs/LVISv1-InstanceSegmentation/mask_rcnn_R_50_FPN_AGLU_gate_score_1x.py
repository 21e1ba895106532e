# Step 3: add APA with learned λ and κ as the class score.
from .mask_rcnn_R_50_FPN_AGLU_gate_1x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.class_score = "apa"
