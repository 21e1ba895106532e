"""A custom backbone with AGLU and an APA gate."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from apa_det import AGLU
from apa_det.layers import SEGate


@BACKBONE_REGISTRY.register()
class TheirNet(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        channels = cfg.MODEL.THEIR_NET.CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape.channels, channels, 3, stride=4, padding=1),
            nn.BatchNorm2d(channels),
            AGLU(),
        )
        self.stage = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            AGLU(channels),
            SEGate(channels, reduction=4),
        )
        self._shapes = {
            "stem": ShapeSpec(channels=channels, stride=4),
            "stage": ShapeSpec(channels=channels, stride=8),
        }

    def forward(self, image):
        stem = self.stem(image)
        return {"stem": stem, "stage": self.stage(stem)}

    def output_shape(self):
        return self._shapes
