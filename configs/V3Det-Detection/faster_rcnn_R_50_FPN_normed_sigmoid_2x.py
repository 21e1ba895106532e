# The published baseline with ReLU, and sigmoid scores of a cosine classifier with temperature 50.
from .faster_rcnn_R_50_FPN_softmax_2x import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.update(
    class_score="sigmoid",
    background_output=False,
    predictor="normed",
    predictor_temperature=50.0,
)
