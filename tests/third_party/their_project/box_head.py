"""A custom box head with an activation of apa_det, selected by name."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import nn

import apa_det


@ROI_BOX_HEAD_REGISTRY.register()
class TheirBoxHead(nn.Module):
    def __init__(self, cfg, input_shape):
        super().__init__()
        size = input_shape.channels * input_shape.height * input_shape.width
        width = cfg.MODEL.ROI_BOX_HEAD.FC_DIM
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, width),
            apa_det.layers.get_activation(cfg.MODEL.ROI_BOX_HEAD.ACTIVATION, width),
        )
        self.output_shape = ShapeSpec(channels=width)

    def forward(self, x):
        return self.layers(x)
