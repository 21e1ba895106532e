"""Compare models with folded norms with the original models."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

import apa_det

CONFIGS = Path(__file__).parents[2] / "configs" / "LVISv1-InstanceSegmentation"


@pytest.fixture
def model():
    torch.manual_seed(0)
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 7])
    built = build_model(cfg)
    for module in built.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            for value in (module.running_mean, module.running_var, module.weight, module.bias):
                value.data.uniform_(0.8, 1.2)
    return built


def test_same_features(model):
    x = torch.randn(1, 3, 96, 128)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = apa_det.fuse(model.eval())
    assert not any(isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in fused.modules())
    with torch.no_grad():
        expected, actual = model.backbone(x), fused.backbone(x)
    for name, feature in expected.items():
        assert (actual[name] - feature).norm() < 1e-4 * feature.norm()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_error_in_training_mode(model):
    with pytest.raises(ValueError, match="model.eval"):
        apa_det.fuse(model.train())
