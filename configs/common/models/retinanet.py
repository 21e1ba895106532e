# detectron2's RetinaNet, with apa_det's backbone.
from detectron2 import model_zoo

from .resnet import bottom_up

model = model_zoo.get_config("common/models/retinanet.py").model
model.update(
    input_format="RGB",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.bottom_up = bottom_up
