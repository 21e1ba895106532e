# Reproduces FRACAL with Mask R-CNN R50 (Alexandridis et al., CVPR 2025): AP 28.5, APr 23.0,
# APc 28.1, APf 31.5, box AP 28.4. FRACAL calibrates the scores in inference; it does not change
# training.
from .mask_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.update(
    predictor="normed",
    predictor_temperature=20.0,
    calibration="FRACAL",
    calibration_strength=1.0,
    calibration_datasets="${dataloader.train.dataset.names}",
    test_nms_thresh=0.3,
)
model.roi_heads.mask_head.update(
    upsample="carafe",
    predictor="normed",
    predictor_temperature=20.25,
    predictor_learn_temperature=True,
    mask_threshold=0.4,
)
