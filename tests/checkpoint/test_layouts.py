import pytest
import torch
from torch import nn

from apa_det.checkpoint import Layout, recognize, select_state
from apa_det.errors import UserError


def one(value=1.0):
    return torch.tensor([value])


@pytest.mark.parametrize(
    "names, layout",
    [
        (["backbone.conv1.weight", "backbone.layer1.0.conv1.weight"], Layout.PUBLISHED),
        (["backbone.stages.0.norm.weight", "neck.fpn_convs.0.conv.weight"], Layout.PUBLISHED),
        (["conv1.weight", "layer1.0.conv1.weight", "relu.lambda_param"], Layout.CLASSIFIER),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], Layout.TORCHVISION),
        (["stem.conv1.weight", "res2.0.conv1.weight"], Layout.ZOO),
        (["conv1_w", "res_conv1_bn_s", "fc1000_b"], Layout.CAFFE2),
        (["backbone.bottom_up.stem.conv1.weight", "roi_heads.x.weight"], Layout.DETECTRON2),
        (["transformer.encoder.weight"], None),
    ],
)
def test_recognize(names, layout):
    assert recognize(names) is layout


def test_recognize_marked_for_heuristics():
    assert recognize(["bottom_up.res2.weight"], matching_heuristics=True) is Layout.ZOO


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state", "blobs", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_select_state(entry, prefix):
    state = {f"{prefix}a.weight": one(), f"{prefix}a.count": 3}
    checkpoint = state if entry is None else {"epoch": 1, entry: state}
    assert select_state(checkpoint) == {"a.weight": one()}


@pytest.mark.parametrize("entry", ["ema_state_dict", "state_dict_ema", "model_ema"])
def test_ema_state_dict(entry, caplog):
    caplog.set_level("INFO")
    model = nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    nn.init.zeros_(averaged.module.weight)
    checkpoint = {"model": model.state_dict(), entry: averaged.state_dict()}
    assert torch.equal(select_state(checkpoint)["weight"], model.weight)
    assert "also has EMA weights" in caplog.text
    averages = select_state(checkpoint, ema=True)
    assert averages.keys() == {"n_averaged", "weight", "bias"}
    assert torch.equal(averages["weight"], averaged.module.weight)


@pytest.mark.parametrize("underscore", ["_", "."])
def test_ema_buffers(underscore):
    state = {
        "conv.weight": one(1),
        "bn.running_mean": one(2),
        f"ema_conv{underscore}weight": one(3),
    }
    checkpoint = {"state_dict": state}
    assert select_state(checkpoint) == {"conv.weight": one(1), "bn.running_mean": one(2)}
    averages = select_state(checkpoint, ema=True)
    assert averages == {"conv.weight": one(3), "bn.running_mean": one(2)}


def test_invalid_states():
    with pytest.raises(UserError, match="no weights, only these entries: epoch, meta"):
        select_state({"epoch": 1, "meta": {}})
    with pytest.raises(UserError, match="only these entries: none"):
        select_state({})
    with pytest.raises(UserError, match="no EMA weights"):
        select_state({"model": {"a": one()}}, ema=True)
    with pytest.raises(UserError, match="with and without the prefix"):
        select_state({"model": {"a": one(), "module.a": one()}})
