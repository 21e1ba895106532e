"""Small detectors with random weights that detect something."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from apa_det.engine import read_config

SMALL = """
MODEL.DEVICE cpu
MODEL.RESNETS.OUT_FEATURES ['res4','res5']
MODEL.FPN.IN_FEATURES ['res4','res5']
MODEL.FPN.OUT_CHANNELS 16
MODEL.ANCHOR_GENERATOR.SIZES [[16],[32],[64]]
MODEL.RPN.IN_FEATURES ['p4','p5','p6']
MODEL.RPN.POST_NMS_TOPK_TEST 30
MODEL.ROI_HEADS.IN_FEATURES ['p4','p5']
MODEL.ROI_HEADS.NUM_CLASSES 5
MODEL.ROI_BOX_HEAD.FC_DIM 32
MODEL.ROI_MASK_HEAD.NUM_CONV 1
MODEL.ROI_MASK_HEAD.CONV_DIM 16
TEST.DETECTIONS_PER_IMAGE 20
""".split()

KINDS = {
    "quickstart": "",
    "softmax": "MODEL.ROI_BOX_HEAD.CLASS_SCORE softmax MODEL.APA.GATE cbam",
    "published": "MODEL.ROI_BOX_HEAD.CLASS_SCORE gumbel MODEL.ROI_MASK_HEAD.UPSAMPLE carafe "
    "MODEL.ROI_MASK_HEAD.PREDICTOR normed MODEL.ROI_MASK_HEAD.THRESHOLD 0.4",
    "cascade": "MODEL.ROI_HEADS.NAME APACascadeROIHeads MODEL.ROI_BOX_HEAD.CLASS_SCORE apa "
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True",
    "retinanet": "MODEL.META_ARCHITECTURE RetinaNet MODEL.RETINANET.NUM_CLASSES 5 "
    "MODEL.RETINANET.IN_FEATURES ['p4','p5','p6'] MODEL.RETINANET.NUM_CONVS 1 "
    "MODEL.RETINANET.SCORE_THRESH_TEST 0.0",
    "injected": "MODEL.META_ARCHITECTURE APAInjected MODEL.APA.INJECT.NAMES ['*'] "
    "MODEL.APA.INJECT.LIKE replaced MODEL.APA.ACTIVATION relu MODEL.APA.GATE none",
}


def build(config_file, kind):
    """Build a model of this kind, with norm statistics as after training."""
    opts = [*SMALL, *KINDS[kind].split()]
    cfg = read_config(config_file, opts)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if name.endswith(("cls_score", "objectness_logits", "mask_head.predictor")):
            nn.init.normal_(module.weight, std=0.3)
        if "bbox_pred" in name and hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=0.1)
    return model


@pytest.fixture(scope="session")
def detectors(quickstart):
    """Return a model by its kind, in evaluation mode and shared by all tests."""
    built = {}

    def get(kind):
        if kind not in built:
            built[kind] = build(quickstart.yaml, kind)
        return built[kind]

    return get


@pytest.fixture(scope="session")
def images():
    """Images of two sizes, which are not multiples of 32."""
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 72, 104), (3, 120, 88)
    return [torch.rand(size, generator=generator) * 255 for size in sizes]
