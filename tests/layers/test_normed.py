"""Normed layers against F.linear and F.conv2d of normalized tensors; wrapped Cauchy."""

import math

import pytest
import torch
import torch.nn.functional as F

from apa_det.errors import UserError
from apa_det.layers import NormedConv2d, NormedLinear, WrappedCauchyLinear, wrapped_cauchy_linear


def make(cls, *args, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    module = cls(*args, **kwargs).to(dtype)
    torch.nn.init.normal_(module.weight)
    if module.bias is not None:
        torch.nn.init.normal_(module.bias)
    return module


@pytest.mark.parametrize("learn", [False, True])
def test_linear(learn):
    module = make(NormedLinear, 6, 4, temperature=20.25, learn_temperature=learn)
    x = torch.randn(5, 6, dtype=torch.float64)
    x[0] *= 1e-6  # as small as eps
    norms = [math.sqrt(sum(v**2 for v in row)) + 1e-6 for row in x.tolist()]
    rows = [math.sqrt(sum(v**2 for v in row)) + 1e-6 for row in module.weight.tolist()]
    expected = 20.25 * F.linear(x, module.weight) / torch.tensor(norms)[:, None].double()
    expected = expected / torch.tensor(rows).double() + module.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("conv_args", [{}, dict(padding=1, stride=2), dict(dilation=2, bias=False)])
def test_conv(conv_args):
    module = make(NormedConv2d, 6, 4, 3, temperature=2.0, **conv_args)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)

    def by_channel_norm(t):
        norm = torch.zeros_like(t[:, :1])
        for channel in t.split(1, dim=1):
            norm = norm + channel**2
        return t / (norm.sqrt() + 1e-6)

    conv_args = {k: v for k, v in conv_args.items() if k != "bias"}
    expected = F.conv2d(by_channel_norm(x), 2 * by_channel_norm(module.weight), **conv_args)
    if module.bias is not None:
        expected = expected + module.bias[:, None, None]
    torch.testing.assert_close(module(x), expected)


def test_learned_temperature_is_squared():
    module = make(NormedLinear, 3, 2, temperature=20.25, learn_temperature=True)
    assert dict(module.named_parameters())["temperature"].item() == 4.5
    x = torch.randn(4, 3, dtype=torch.float64)
    before = module(x) - module.bias
    with torch.no_grad():
        module.temperature.mul_(-2)
    torch.testing.assert_close(module(x) - module.bias, 4 * before)
    module(x).sum().backward()
    torch.testing.assert_close(module.temperature.grad, 2 * before.sum() * 4 / -9)
    assert "temperature" not in dict(NormedLinear(3, 2).named_parameters())


@pytest.mark.parametrize("cls", [NormedLinear, WrappedCauchyLinear])
def test_gradients(cls):
    module = make(cls, 3, 2)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_types(dtype, autocast):
    """Zero and tiny vectors too: no intermediate value overflows."""
    module, x = make(NormedConv2d, 8, 4, 1, dtype=torch.float32), torch.randn(2, 8, 3, 3)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.0, 1e-6, 3e4
    expected = module(x)
    if not autocast:
        module.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        x = x.to(dtype).requires_grad_()
        out = module(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float()[1], expected[1], rtol=0.02, atol=0.2)
    assert out.isfinite().all()
    out.float().sum().backward()
    if dtype == torch.float16:  # the gradient of a zero vector is 1e6, beyond float16
        x.grad[0, :, 0, :2] = 0
    assert x.grad.isfinite().all()


def wrapped_cauchy(cosine, g):
    gamma = 1 / (1 + math.exp(-g))
    return 300 * (1 / 2 / 3.14) * (1 - gamma**2) / (1 + gamma**2 - 2 * gamma * cosine)


def test_wrapped_cauchy_closed_form():
    """Inputs at known angles to the weights; the bias is added to the cosine."""
    angles = [0.0, 0.4, math.pi / 2, 3.0]
    x = torch.tensor([[5 * math.cos(a), 5 * math.sin(a)] for a in angles], dtype=torch.float64)
    weight = torch.tensor([[2.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    bias, g = torch.tensor([0.0, -0.05]).double(), torch.tensor([1.0, -0.5]).double()
    expected = [
        [wrapped_cauchy(math.cos(a), 1.0), wrapped_cauchy(math.sin(a) - 0.05, -0.5)] for a in angles
    ]
    out = wrapped_cauchy_linear(x, weight, bias, g)
    torch.testing.assert_close(out, torch.tensor(expected).double(), rtol=2e-4, atol=0)


def test_wrapped_cauchy_module():
    module = WrappedCauchyLinear(8, 5)
    assert torch.equal(module.g, torch.ones(5)) and torch.equal(module.bias, torch.zeros(5))
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
        "weight": (5, 8),
        "bias": (5,),
        "g": (5,),
    }


def test_wrapped_cauchy_under_autocast():
    """Near cos = 1, half precision would have errors of several units."""
    module = WrappedCauchyLinear(8, 5)
    x = module.weight.detach() * 100 + 0.01 * torch.randn(5, 8)
    expected = module.double()(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module.float()(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_errors(temperature):
    with pytest.raises(UserError, match="temperature must be positive, got"):
        NormedLinear(3, 2, temperature=temperature)
