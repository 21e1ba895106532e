"""Helpers of the tests of injection."""

from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from apa_det import APA

SILU = dict(lambda_range=(1.0, 1.0), kappa_range=(1.0, 1.0))  # makes AGLU equal to SiLU


def injected_names(model):
    return [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, APA)]


def small_stage():
    blocks = ResNet.make_stage(
        BottleneckBlock,
        2,
        stride_per_block=[2, 1],
        in_channels=8,
        out_channels=16,
        norm="BN",
        bottleneck_channels=4,
    )
    return nn.Sequential(*blocks)
