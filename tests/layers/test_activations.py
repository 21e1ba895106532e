"""The activations against their formulas in float64."""

import math

import pytest
import torch
from torch import nn

from apa_det import AGLU
from apa_det.errors import UserError
from apa_det.layers import ACTIVATION_REGISTRY, Swish, get_activation

FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "prelu": lambda x: max(x, 0.0) + 0.25 * min(x, 0.0),
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "aglu": lambda x: x * (0.5 * math.exp(-1.2 * x) + 1) ** -2,
}
AGLU_ARGS = {"lambda_range": (0.5, 0.5), "kappa_range": (1.2, 1.2)}


def test_every_name_has_a_formula_and_a_source():
    assert {name for name, _ in ACTIVATION_REGISTRY} == set(FORMULAS)
    assert all(builder.__doc__ for _, builder in ACTIVATION_REGISTRY)


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_formula(name):
    module = get_activation(name, 3, **AGLU_ARGS).double()
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[name](v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(module(x.clone()), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["aglu", "prelu", "swish"])
def test_parameters_per_channel(name):
    shared, per_channel = (get_activation(name, 3, per_channel=p) for p in (False, True))
    sizes = [[p.numel() for p in module.parameters()] for module in (shared, per_channel)]
    assert set(sizes[0]) == {1} and set(sizes[1]) == {3}
    assert per_channel(torch.randn(2, 3, 4, 5)).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5, 2)])
def test_swish(shape):
    """Per-channel β, its gradient, and the limits x / 2 for β = 0 and ReLU for large β."""
    swish, x = Swish(3), torch.randn(shape)
    beta = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    swish.beta.data.copy_(beta)
    factor = beta.view([3] + [1] * (len(shape) - 2))
    expected = x * torch.sigmoid(factor * x)
    out = swish(x)
    torch.testing.assert_close(out, expected)
    expected.sum().backward()
    out.sum().backward()
    torch.testing.assert_close(swish.beta.grad, beta.grad)
    torch.testing.assert_close(torch.jit.script(swish)(x), out)
    swish.beta.data.fill_(0.0)
    torch.testing.assert_close(swish(x), x / 2)
    swish.beta.data.fill_(1e4)
    torch.testing.assert_close(swish(x), x.relu(), atol=1e-4, rtol=0)


def test_names_and_callables():
    assert type(get_activation("aglu", 3)) is AGLU
    assert isinstance(get_activation(nn.Dropout, 0), nn.Dropout)
    with pytest.raises(UserError, match="Unknown activation 'swash'; expected one of aglu, elu"):
        get_activation("swash", 3)


def test_registered_name(monkeypatch):
    monkeypatch.setattr(ACTIVATION_REGISTRY, "_obj_map", dict(ACTIVATION_REGISTRY._obj_map))

    @ACTIVATION_REGISTRY.register()
    def softsign(num_channels=None, **_):
        return nn.Softsign()

    assert isinstance(get_activation("softsign", 3, lambda_min=0.1), nn.Softsign)
