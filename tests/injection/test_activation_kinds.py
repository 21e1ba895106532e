"""How AGLU and APA approximate each kind of activation, and how kinds are recognized."""

import pytest
import torch
from torch import nn

from apa_det import AGLU, APA, aglu, inject
from apa_det.injection.activation_kinds import KINDS

from .conftest import injected_names

APPROXIMATIONS = {  # λ and κ, and the largest error for |z| <= 10
    "ReLU": ((1, 300), 0.001),
    "SiLU": ((1, 1), 1e-6),
    "GELU": ((1, 1.702), 0.021),
    "Mish": ((2.2025, 1.8958), 0.017),
    "Sigmoid": ((1, 1), 1e-6),
    "Hardsigmoid": ((1, 0.9413), 0.057),
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_like_replaced(name):
    (lambda_, kappa), tolerance = APPROXIMATIONS[name]
    model = nn.Sequential(getattr(nn, name)())
    z = torch.linspace(-10, 10, 999)
    expected = model(z)
    inject(model, like="replaced")
    assert model[0].lambda_param.item() == pytest.approx(lambda_)
    assert model[0].kappa_param.item() == pytest.approx(kappa)
    assert (model(z) - expected).abs().max() < tolerance
    model[0].reset_parameters()
    assert (model(z) - expected).abs().max() < tolerance


@pytest.mark.parametrize(
    "module",
    [nn.ELU(), nn.SELU(), nn.CELU(), nn.ReLU6(), nn.Hardswish(), nn.LeakyReLU(0.2)],
    ids=str,
)
def test_no_approximation(module):
    model = nn.Sequential(nn.ReLU(), module)
    with pytest.raises(ValueError, match=r'approximate .* at 1.*\. Exclude it by .*\("!1"\)'):
        inject(model, like="replaced")
    assert model[1] is module and not injected_names(model)
    inject(model)
    assert type(model[1]) is AGLU


@pytest.mark.parametrize("name", ["relu6", "hardswish"])
def test_refusal_names_the_least_error(name):
    """No λ and κ of a dense grid around the named ones are closer."""
    lambda_, kappa, error = KINDS[name].too_far
    function, z = KINDS[name].functions[0], torch.linspace(-10, 10, 401)
    with pytest.raises(ValueError, match=f"λ = {lambda_:g} and κ = {kappa:g}, .* to {error:g}"):
        inject(nn.Sequential(KINDS[name].module()), like="replaced")
    assert error - 0.002 < (aglu(z, lambda_, kappa) - function(z)).abs().max() < error
    factors = 2 ** torch.linspace(-4, 4, 161)
    lambda_, kappa = lambda_ * factors.view(-1, 1, 1), kappa * factors.view(-1, 1)
    grid = z * (lambda_ * (-kappa * z).exp() + 1) ** (-1 / lambda_)
    assert (grid - function(z)).abs().amax(-1).min() > error - 0.002


def test_leaky_relu_with_small_slope():
    inject(nn.Sequential(nn.LeakyReLU()), like="replaced")


def test_ranges_close_to_relu():
    """κ = 20, as in the configs, is close to ReLU and has larger gradients than κ = 300."""
    gradients = []
    for kappa in (20.0, 300.0):
        model, z = nn.Sequential(nn.ReLU()), torch.linspace(-10, 10, 20001)
        expected = model(z)
        inject(model, lambda_range=(1, 1), kappa_range=(kappa, kappa))
        assert 0.27 / kappa < (model(z) - expected).abs().max() < 0.28 / kappa
        model(z).sum().backward()
        gradients.append((model[0].kappa_param.grad.item(), model[0].lambda_param.grad.item()))
    (kappa_20, lambda_20), (kappa_300, lambda_300) = gradients
    assert kappa_20 / kappa_300 == pytest.approx(15**3, rel=0.01)
    assert lambda_20 / lambda_300 == pytest.approx(15**2, rel=0.01)


def test_published_ranges():
    model = nn.Sequential(*(nn.ReLU() for _ in range(200)), *(nn.Sigmoid() for _ in range(200)))
    inject(model)
    for gate, (low, high) in ((False, (1, 1.3)), (True, (-1, 0))):
        layers = [m for m in model if type(m) is (APA if gate else AGLU)]
        assert len(layers) == 200
        lambdas, kappas = (
            torch.stack([getattr(m, name) for m in layers])
            for name in ("lambda_param", "kappa_param")
        )
        assert 0 <= lambdas.min() < 0.1 and 0.9 < lambdas.max() <= 1
        tenth = (high - low) / 10
        assert low <= kappas.min() < low + tenth and high - tenth < kappas.max() <= high


class SwishMe(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class h_sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class Sigmoid(nn.Module):
    """As in the gates of timm."""

    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sigmoid_() if self.inplace else x.sigmoid()


class Snake(nn.Module):
    def forward(self, x):
        return x + x.sin() ** 2


def test_classes_are_recognized_by_name():
    model = nn.Sequential(SwishMe(), QuickGELU(), h_sigmoid(), Sigmoid(inplace=True), Snake())
    z = torch.linspace(-10, 10, 99)
    expected = [module(z.clone()) for module in model]
    assert [*inject(model, like="replaced")] == ["0", "1", "2", "3"]
    assert [type(module) for module in model] == [AGLU, AGLU, APA, APA, Snake]
    for module, values, tolerance in zip(model, expected, (1e-5, 1e-5, 0.06, 1e-6), strict=False):
        assert (module(z) - values).abs().max() < tolerance


def test_custom_classes():
    model = nn.Sequential(Snake(), nn.ReLU())
    with pytest.raises(ValueError, match="approximate Snake"):
        inject(model, types=Snake, like="replaced")
    assert [*inject(model, types=[Snake])] == ["0"] and type(model[1]) is nn.ReLU
