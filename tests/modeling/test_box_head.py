"""Compare the box head with detectron2's; check the locations of its gates."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_box_head
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from apa_det import AGLU, add_apa_config
from apa_det.errors import UserError
from apa_det.layers import SEGate
from apa_det.modeling import APAFastRCNNConvFCHead, APAFastRCNNOutputLayers

SHAPE = ShapeSpec(channels=32, height=7, width=7)


def make_cfg(**head):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.NAME = "APAFastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_BOX_HEAD.update(head)
    return cfg


@pytest.mark.parametrize("num_conv,num_fc,norm", [(0, 2, ""), (2, 1, "GN"), (1, 0, "")])
def test_switched_off_is_detectron2(num_conv, num_fc, norm):
    cfg = make_cfg(NUM_CONV=num_conv, NUM_FC=num_fc, CONV_DIM=32, NORM=norm)
    ours = build_box_head(cfg, SHAPE)
    theirs = FastRCNNConvFCHead(cfg, SHAPE)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 32, 7, 7)
    assert torch.equal(ours(x), theirs(x))
    assert ours.output_shape == theirs.output_shape


@pytest.mark.parametrize(
    "gate,names",
    [
        ("roi", ["conv1", "roi_gate", "flatten", "fc1", "fc_relu1", "fc2", "fc_relu2"]),
        ("fc", ["conv1", "flatten", "fc1", "fc_relu1", "fc2", "fc_relu2", "fc_gate"]),
        (
            "roi_fc",
            ["conv1", "roi_gate", "flatten", "fc1", "fc_relu1", "fc2", "fc_relu2", "fc_gate"],
        ),
    ],
)
def test_gates_and_activation(gate, names):
    cfg = make_cfg(NUM_CONV=1, GATE=gate, ACTIVATION="aglu")
    cfg.MODEL.APA.GATE_KAPPA_RANGE = [-0.5, -0.4]
    head = build_box_head(cfg, SHAPE).eval()
    assert [name for name, _ in head.named_children()] == names
    assert isinstance(head.conv1.activation, AGLU) and isinstance(head.fc_relu2, AGLU)
    x = torch.randn(3, 32, 7, 7)
    expected = head.conv1(x)
    if "roi" in gate:
        assert isinstance(head.roi_gate, SEGate) and head.roi_gate.norm.normalized_shape == (16,)
        assert -0.5 <= head.roi_gate.activation.kappa_param.item() <= -0.4
        expected = head.roi_gate(expected)
    expected = head.fc_relu1(head.fc1(expected.flatten(1)))
    expected = head.fc_relu2(head.fc2(expected))
    if "fc" in gate:
        expected = head.fc_gate(expected)
    assert torch.equal(head(x), expected)
    head(x).sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    assert head(x[:0]).shape == (0, 64)


def test_per_channel():
    cfg = make_cfg(ACTIVATION="aglu")
    cfg.MODEL.APA.PER_CHANNEL = True
    head = build_box_head(cfg, SHAPE)
    assert head.fc_relu1.lambda_param.shape == (1, 64, 1, 1)
    assert head(torch.randn(3, 32, 7, 7)).shape == (3, 64)


def test_errors():
    with pytest.raises(
        UserError, match="ROI_BOX_HEAD.GATE must be one of none, roi, .* got 'both'"
    ):
        build_box_head(make_cfg(GATE="both"), SHAPE)
    with pytest.raises(UserError, match="NUM_FC > 0"):
        APAFastRCNNConvFCHead(SHAPE, conv_dims=[8], fc_dims=[], fc_gate="se")


@pytest.mark.parametrize("init", ["torch", "xavier"])
def test_init(init):
    """Bounds of the uniform distributions: 1 / √inputs, and √(6 / (inputs + outputs))."""
    torch.manual_seed(0)
    head = build_box_head(make_cfg(INIT=init), SHAPE)
    for fc in head.fcs:
        inputs, outputs = fc.in_features, fc.out_features
        bound = inputs**-0.5 if init == "torch" else (6 / (inputs + outputs)) ** 0.5
        assert 0.98 * bound < fc.weight.abs().max() <= bound
        assert fc.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert fc.bias.any() == (init == "torch")
    cfg = make_cfg(INIT=init)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 50
    regression = APAFastRCNNOutputLayers(cfg, head.output_shape).bbox_pred
    expected = 64**-0.5 / 3**0.5 if init == "torch" else 0.001
    assert regression.weight.std().item() == pytest.approx(expected, rel=0.05)
    with pytest.raises(UserError, match="must be one of detectron2, xavier, torch; got 'he'"):
        build_box_head(make_cfg(INIT="he"), SHAPE)
