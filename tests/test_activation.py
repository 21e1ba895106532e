"""APA and AGLU against mpmath, float64 autograd and closed forms."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det import AGLU, APA, aglu, apa, log_apa, logit_apa
from apa_det.errors import UserError

FORMS = {"apa": apa, "log_apa": log_apa, "aglu": aglu, "logit_apa": logit_apa}
ULP = 2.0**-23


def exact(form, z, lambda_, kappa):
    """Return the value and its derivatives for z, λ and κ, in mpmath."""
    z, lambda_, kappa = map(mpmath.mpf, (z, lambda_, kappa))
    e = mpmath.exp(-kappa * z)
    x = lambda_ * e
    y = mpmath.log1p(x) / lambda_
    s = x / (1 + x) / lambda_
    dlog = kappa * s, (y - s) / lambda_, z * s  # of log η
    eta = mpmath.exp(-y)
    if form == "log_apa":
        return (-y, *dlog)
    if form == "logit_apa":
        return (-mpmath.log(mpmath.expm1(y)), *(d / -mpmath.expm1(-y) for d in dlog))
    if form == "apa":
        return (eta, *(eta * d for d in dlog))
    return (z * eta, eta + z * eta * dlog[0], z * eta * dlog[1], z * eta * dlog[2])


def grid():
    def float32(values):
        return [float(np.float32(v)) for v in values]

    magnitudes = np.logspace(-6, 4, 18)
    zs = float32([0.0, *magnitudes, *-magnitudes])
    lambdas = float32([1e-8, 1e-6, 1e-4, 1e-2, 0.0625, 0.3, 0.5, 0.7, 1, 2, 10, 100])
    kappas = float32([-3, -1.1, -1e-3, 0, 0.1, 1, 1.702, 5])
    return list(itertools.product(zs, lambdas, kappas))


@pytest.mark.parametrize("form", ["apa", "log_apa", "aglu"])
def test_backward_stable(form):
    """Value and gradients are within 4 ulp of the exact ones at some input within 64 ulp."""
    mpmath.mp.dps = 60
    points = grid()
    inputs = [torch.tensor(column).requires_grad_() for column in zip(*points, strict=True)]
    out = FORMS[form](*inputs)
    out.sum().backward()
    results = torch.stack([out.detach(), *(i.grad for i in inputs)], dim=1).double().tolist()
    wiggles = [1 - 64 * ULP, 1, 1 + 64 * ULP]
    for point, result in zip(points, results, strict=True):
        expected = exact(form, *point)
        around = None
        for k, (value, true) in enumerate(zip(result, expected, strict=True)):
            if abs(true) > torch.finfo(torch.float32).max:
                continue
            error = abs(value - true) - 4 * ULP * abs(true)
            if error <= 1e-20:
                continue
            if around is None:
                around = [
                    exact(form, *(p * w for p, w in zip(point, wiggle, strict=True)))
                    for wiggle in itertools.product(wiggles, repeat=3)
                ]
            assert error <= max(abs(a[k] - true) for a in around), (point, k, value, float(true))


@pytest.mark.parametrize("form", FORMS)
def test_finite(form):
    """No NaN for finite inputs, and no Inf where the true value is finite."""
    z = torch.cat([torch.logspace(-30, 38, 200), torch.zeros(1)])
    z = torch.cat([z, -z])[:, None, None]
    lambda_ = torch.tensor([0, 1e-20, 1e-8, 1e-4, 0.1, 1, 100])[:, None]
    kappa = torch.tensor([-3.0, -1, 0, 1, 5])
    z, lambda_, kappa = (t.clone().requires_grad_() for t in (z, lambda_, kappa))
    out = FORMS[form](z, lambda_, kappa)
    assert not out.isnan().any()
    if form in ("apa", "aglu"):
        assert out.isfinite().all()
    else:
        moderate = (z * kappa).abs().expand_as(out) < 1e4
        assert out[moderate].isfinite().all()
    (grad,) = torch.autograd.grad(out.sum(), z, retain_graph=True)
    assert not grad.isnan().any()
    small = [t.detach()[:1] if t is z else t for t in (z, lambda_, kappa)]
    for z_value in z.detach()[::7]:
        gradients = torch.autograd.grad(
            FORMS[form](z_value.requires_grad_(), *small[1:]).sum(), [z_value, lambda_, kappa]
        )
        assert not any(g.isnan().any() for g in gradients)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 3, 1, 1), (2, 3, 2, 2)])
def test_gradcheck(form, shape):
    torch.manual_seed(0)
    z = (3 * torch.randn(2, 3, 2, 2, dtype=torch.float64)).requires_grad_()
    for low, high in [(1e-6, 1e-3), (0.1, 1), (1, 10)]:
        lambda_ = torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_()
        for kappa_low, kappa_high in [(-3, -0.5), (-0.5, 0.5), (0.5, 5)]:
            kappa = torch.empty(shape, dtype=torch.float64).uniform_(kappa_low, kappa_high)
            # At λ = 1e-6 a step of 1e-6 would leave the domain.
            eps = min(1e-6, low / 10)
            assert torch.autograd.gradcheck(
                FORMS[form], (z, lambda_, kappa.requires_grad_()), eps=eps, atol=1e-3, rtol=1e-3
            )


def naive(form, z, lambda_, kappa):
    log_eta = -torch.log1p(lambda_ * torch.exp(-kappa * z)) / lambda_
    if form == "log_apa":
        return log_eta
    if form == "logit_apa":
        return log_eta - torch.log(-torch.expm1(log_eta))
    eta = (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)
    return z * eta if form == "aglu" else eta


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=100, deadline=None)
@given(
    lambda_=st.floats(0.01, 10),
    kappa=st.floats(-3, 5),
    seed=st.integers(0, 2**31),
)
def test_against_float64_autograd(form, lambda_, kappa, seed):
    z = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = [z, torch.tensor([lambda_]), torch.tensor([kappa])]
    inputs = [t.double().requires_grad_() for t in inputs]
    theirs = torch.autograd.grad(naive(form, *inputs).sum(), inputs)
    single = [t.detach().float().requires_grad_() for t in inputs]
    ours = torch.autograd.grad(FORMS[form](*single).sum(), single)
    for mine, reference in zip(ours, theirs, strict=True):
        scale = max(1.0, reference.abs().max().item())
        torch.testing.assert_close(mine.double(), reference, rtol=2e-5, atol=2e-5 * scale)


def test_lambda_gradient_includes_the_log_term():
    """∂η/∂λ = (η/λ)·(−log η − s); other implementations omit −log η."""
    torch.manual_seed(0)
    z = torch.randn(1000)
    lambda_ = torch.tensor(0.5, requires_grad=True)
    apa(z, lambda_, 1.1).sum().backward()
    reference = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    naive("apa", z.double(), reference, 1.1).sum().backward()
    torch.testing.assert_close(lambda_.grad.double(), reference.grad, rtol=1e-6, atol=0)
    eta = apa(z, 0.5, 1.1)
    s = (1 - eta**0.5) / 0.5
    without_log = (eta / 0.5 * -s).sum()
    assert abs(lambda_.grad - without_log) > 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_types_round_once(form, dtype):
    z = torch.linspace(-200, 200, 4001).to(dtype)
    for lambda_, kappa in itertools.product([1e-4, 0.03, 1, 3], [-1, 0.5, 1.1, 3]):
        half, single = z.clone().requires_grad_(), z.float().requires_grad_()
        backend = "eager" if dtype == torch.float16 else None  # the only CPU backend for it
        out, expected = (FORMS[form](t, lambda_, kappa, backend=backend) for t in (half, single))
        assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
        grad = torch.randn(4001).to(dtype)
        out.backward(grad)
        expected.backward(grad.float())
        assert torch.equal(half.grad, single.grad.to(dtype))
        if form in ("apa", "aglu"):
            assert out.isfinite().all() and half.grad.isfinite().all()


def test_half_parameters_and_autocast():
    z = torch.randn(4, 8, dtype=torch.bfloat16)
    lambda_, kappa = torch.tensor([0.5, 1.1], dtype=torch.bfloat16).unbind()
    assert torch.equal(apa(z, lambda_, kappa), apa(z, lambda_.float(), kappa.float()))
    layer, linear = AGLU(), torch.nn.Linear(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(linear(torch.randn(4, 8)))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.lambda_param.grad.dtype == torch.float32


def test_closed_forms():
    z = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    close = dict(rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(apa(z, 1, 1), z.sigmoid(), **close)
    torch.testing.assert_close(log_apa(z, 1, 1), F.logsigmoid(z), **close)
    torch.testing.assert_close(logit_apa(z, 1, 1), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(aglu(z, 1, 1), F.silu(z), **close)
    torch.testing.assert_close(aglu(z, 1, 1.702), z * torch.sigmoid(1.702 * z), **close)
    assert (aglu(z, 1, 1.702) - F.gelu(z)).abs().max() < 0.021
    assert (aglu(z, 0.7, 1e4) - z.relu()).abs().max() < 1e-3
    torch.testing.assert_close(apa(z, 0.0, 1), torch.exp(-torch.exp(-z)), **close)
    torch.testing.assert_close(apa(z, 2, 0), torch.full_like(z, 3**-0.5), **close)


def test_gumbel_limit_is_continuous():
    z = torch.linspace(-5, 20, 501, dtype=torch.float64)
    gumbel = torch.exp(-torch.exp(-z))
    gaps = [(apa(z, 10.0**-k, 1) - gumbel).abs().max() for k in range(1, 14)]
    assert all(b < 0.11 * a for a, b in zip(gaps, gaps[1:], strict=False))
    lambda_ = torch.zeros((), requires_grad=True)
    (grad,) = torch.autograd.grad(apa(z.float(), lambda_, 1.0).sum(), lambda_)
    limit = (gumbel * torch.exp(-2 * z) / 2).sum()
    torch.testing.assert_close(grad.double(), limit, rtol=1e-5, atol=0)


def test_cross_entropy_of_the_log_odds():
    z = torch.linspace(-300, 300, 601, requires_grad=True)
    for target, lambda_ in itertools.product([0.0, 1.0], [0.0, 1e-4, 0.5, 2]):
        loss = F.binary_cross_entropy_with_logits(
            logit_apa(z, lambda_, 1.0), torch.full_like(z, target), reduction="none"
        )
        (grad,) = torch.autograd.grad(loss.sum(), z)
        assert loss.isfinite().all() and grad.isfinite().all()
        z64 = z.detach().double()
        eta = naive("apa", z64, lambda_, 1.0) if lambda_ else torch.exp(-torch.exp(-z64))
        expected = -(eta.log() if target else torch.log1p(-eta))
        known = (eta > 1e-300) & (eta < 1 - 1e-9)
        assert known.sum() > 10
        torch.testing.assert_close(
            loss.detach().double()[known], expected[known], rtol=1e-4, atol=1e-6
        )


def test_layouts_and_sizes():
    """Results do not depend on blocks, strides or broadcasting."""
    torch.manual_seed(0)
    lambda_, kappa = torch.rand(1, 5, 1, 1), torch.rand(1, 5, 1, 1)
    big = torch.randn(3, 5, 200, 300)
    layouts = {
        "contiguous": big,
        "channels_last": big.to(memory_format=torch.channels_last),
        "transposed": big.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": torch.cat([big, big], dim=3)[..., ::2][..., :150],
        "expanded": big[:1, :, :1].expand(2, 5, 7, 300),
        "empty": big[:0],
        "one": big[:1, :, :1, :1],
    }
    for name, z in layouts.items():
        for parameters in [(lambda_, kappa), (lambda_[0, 0, 0, 0], kappa[0, 0, 0, 0])]:
            inputs = [t.detach().clone().requires_grad_() for t in (z, *parameters)]
            if name in ("sliced", "expanded"):
                inputs[0] = z.detach().requires_grad_()
            reference = [t.detach().double().contiguous().requires_grad_() for t in inputs]
            weight = torch.randn(z.shape)
            out = aglu(*inputs)
            expected = naive("aglu", *reference)
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
            if name not in ("sliced", "expanded", "empty", "one"):
                assert out.stride() == z.stride()
            got = torch.autograd.grad((out * weight).sum(), inputs)
            want = torch.autograd.grad((expected * weight.double()).sum(), reference)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_gradients_are_deterministic():
    z, layer = torch.randn(2, 64, 100, 100), AGLU()
    gradients = [
        torch.autograd.grad(layer(z).sum(), [layer.lambda_param, layer.kappa_param])
        for _ in range(3)
    ]
    for gradient in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradient, gradients[0], strict=True))


def test_saves_only_its_inputs():
    z = torch.randn(10, 10, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        aglu(z, torch.tensor(0.5, requires_grad=True), torch.tensor(1.0, requires_grad=True))
    assert sum(t.numel() for t in kept) == 102
    assert any(t.data_ptr() == z.data_ptr() for t in kept)


def test_double_backward_raises():
    z = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(aglu(z, 0.5, 1.0).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("module", [APA, AGLU])
def test_modules(module):
    torch.manual_seed(0)
    function = apa if module is APA else aglu
    layer = module(lambda_range=(0.2, 0.4), kappa_range=(-0.5, -0.4))
    assert layer.lambda_param.shape == layer.kappa_param.shape == (1,)
    assert 0.2 <= layer.lambda_param.item() <= 0.4 and -0.5 <= layer.kappa_param.item() <= -0.4
    z = torch.randn(2, 6, 3, 3)
    assert torch.equal(layer(z), function(z, layer.lambda_param, layer.kappa_param))

    layer = module(6)
    assert layer.lambda_param.shape == layer.kappa_param.shape == (1, 6, 1, 1)
    assert torch.equal(layer(z), function(z, layer.lambda_param, layer.kappa_param))
    torch.testing.assert_close(layer(z[:, :, 0, 0]), layer(z)[:, :, 0, 0])
    with pytest.raises(ValueError, match="6 channels"):
        layer(z[:, :5])
    with torch.no_grad():
        layer.lambda_param.fill_(-1)
    assert torch.equal(layer(z), function(z, 1e-4, layer.kappa_param))


def test_errors():
    with pytest.raises(TypeError, match="int64"):
        apa(torch.arange(3), 1.0, 1.0)
    with pytest.raises(ValueError, match="lambda_ of aglu must be >= 0, got -0.1"):
        aglu(torch.zeros(3), -0.1, 1.0)
    assert apa(torch.zeros(1), torch.tensor(-0.1), 1.0).isnan().all()
    with pytest.raises(UserError, match="low <= high.*MODEL.APA.LAMBDA_RANGE"):
        APA(lambda_range=(1.0, 0.0))
    with pytest.raises(UserError, match="must be >= 0.*MODEL.APA.LAMBDA_RANGE"):
        AGLU(lambda_range=(-1.0, 0.0))
