# Mask R-CNN SE-R50 with AGLU, APA gates and GOL, calibrated by FRACAL. No results are published for
# it. FRACAL has its form for binary scores here, which are then about squares, and so is the score
# threshold. Fit the strength with tools/calibrate.py.
from .mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.update(
    calibration="FRACAL",
    calibration_strength=1.0,
    calibration_datasets="${dataloader.train.dataset.names}",
    test_score_thresh=1e-8,
)
