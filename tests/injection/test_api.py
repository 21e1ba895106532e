"""Selection of activations, errors, tied parameters and restore."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from apa_det import AGLU, inject, restore
from apa_det.modeling import injected

from .conftest import SILU, injected_names, small_stage


@pytest.mark.parametrize(
    "names, types, expected",
    [
        ("*", "relu", ["0", "1.activation", "2.act"]),
        ("*", nn.ReLU, ["0", "1.activation", "2.act"]),
        ("*", ["sigmoid", "gelu"], ["3", "4"]),
        (["2.*", "[34]"], None, ["2.act", "3", "4"]),
        (["!?.act*", "!4"], None, ["0", "3"]),
        (["[0-2]*", "!2.*"], None, ["0", "1.activation"]),
        ("?.act", None, ["2.act"]),
    ],
)
def test_selection(names, types, expected):
    model = nn.Sequential(
        nn.ReLU(), Conv2d(1, 1, 1, activation=F.relu), LastLevelP6P7(1, 1), nn.GELU(), nn.Sigmoid()
    )
    assert sorted(inject(model, names, types=types)) == expected == sorted(injected_names(model))


@pytest.mark.parametrize(
    "args, message",
    [
        ({"names": "head.*"}, "'head.*' matches no activation .* Some that exist: 0, 1.act"),
        ({"names": ["*", "1.relu"]}, "'1.relu' matches no"),
        ({"names": "!head.*"}, "'!head.*' matches no"),
        ({"names": ["0", "!*"]}, r"names excludes every activation: 0, !\*"),
        ({"types": "mish"}, "matches no activation of these types .* There are none"),
        ({"types": ["relu", "tanh"]}, "types must be module classes or among relu, .*; got tanh"),
        ({"like": "relu"}, "like must be \"replaced\" or None; got 'relu'"),
        ({"parameters": "one"}, "parameters must be one of shared, per_channel, tied; got 'one'"),
        ({"lambda_range": (-1, 1)}, "must be >= 0"),
        ({"parameters": "per_channel"}, "requires example"),
        ({"parameters": "per_channel", "example": torch.ones(2)}, "The model fails on the example"),
    ],
)
def test_errors_change_nothing(args, message):
    model = nn.Sequential(nn.ReLU(), LastLevelP6P7(1, 1)).train()
    with pytest.raises(ValueError, match=message):
        inject(model, **args)
    assert type(model[0]) is nn.ReLU and type(model[1]) is LastLevelP6P7 and model[0].training
    with pytest.raises(ValueError, match="Nothing is injected in Sequential"):
        restore(model)


def test_repeated_injection():
    """Each call replaces remaining activations; restore undoes all calls."""
    block, x = small_stage()[0].eval(), torch.randn(1, 8, 8, 8)
    names, before = [*block.state_dict()], block(x)
    assert [*inject(block, "act2", **SILU)] == ["act2"]
    assert [*inject(block, **SILU)] == ["act1", "act3"]
    with pytest.raises(ValueError, match="There are none"):
        inject(block)
    other = small_stage()[0].eval()
    other.load_state_dict(block.state_dict(), strict=False)
    inject(other, **SILU)
    assert torch.equal(block(x), other(x))
    restore(block)
    assert [*block.state_dict()] == names and torch.equal(block(x), before)


def test_injected_returns_the_model():
    model = nn.Sequential(nn.ReLU())
    assert injected(model, "0", **SILU) is model and type(model[0]) is AGLU


def test_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.Sigmoid())
    inject(model, parameters="tied")
    assert model[1] is model[2] and model[3] is model[4] and model[1] is not model[3]
    assert len([*model.parameters()]) == 2 + 2 * 2
    clone = copy.deepcopy(model)
    assert clone[1] is clone[2]
    restore(model)
    assert [type(m) for m in model[1:]] == [nn.ReLU, nn.GELU, nn.Sigmoid, nn.Sigmoid]
    with pytest.raises(ValueError, match="One λ and κ cannot approximate both 1 and 2"):
        inject(model, parameters="tied", like="replaced")
    inject(model, types=["gelu", "sigmoid"], parameters="tied", like="replaced")


def test_tied_with_hooks():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    model[1].register_forward_hook(print)
    with pytest.raises(ValueError, match="1 has hooks, which the module shared by all"):
        inject(model, parameters="tied")
