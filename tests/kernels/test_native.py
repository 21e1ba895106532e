"""The native backend against float64 autograd of the formulas, in every layout."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det import aglu, logit_apa
from apa_det.activation import affine_aglu, apa_cross_entropy
from apa_det.kernels import native, native_library

pytestmark = pytest.mark.skipif(native_library.LIBRARY is None, reason="it is not compiled")
FORMATS = [torch.contiguous_format, torch.channels_last]


def leaves(*tensors, dtype=None):
    return [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


def assert_same(function, tensors, expected_function, *, rtol=1e-4, atol=1e-5):
    """Compare value and gradients of a float32 function with those of a float64 one."""
    single = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    double = leaves(*tensors, dtype=torch.float64)
    out, expected = function(*single), expected_function(*double)
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=atol)
    weight = torch.randn_like(out)
    got = torch.autograd.grad(out, [t for t in single if t is not None], weight)
    want = torch.autograd.grad(expected, [t for t in double if t is not None], weight.double())
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol * max(1, largest))


def formula(u, lambda_, kappa):
    return u * (lambda_ * torch.exp(-kappa * u) + 1) ** (-1 / lambda_)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 300, 9, 40))),
    layout=st.sampled_from(FORMATS),
    per_image=st.booleans(),
    with_residual=st.booleans(),
    per_channel=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_affine_aglu(shape, layout, per_image, with_residual, per_channel, seed):
    torch.manual_seed(seed)
    n, c, h, w = shape
    x, residual = (torch.randn(shape).to(memory_format=layout) for _ in range(2))
    scale, shift = torch.randn(2, n if per_image else 1, c, 1, 1).unbind()
    size = (1, c, 1, 1) if per_channel else (1,)
    lambda_, kappa = torch.empty(2, *size).uniform_(0.2, 1.5).unbind()
    assert_same(
        lambda *t: affine_aglu(*t, backend="native"),
        (x, scale, shift, residual if with_residual else None, lambda_, kappa),
        lambda x, a, b, r, lam, kap: formula(x * a + b + (0 if r is None else r), lam, kap),
    )


def test_number_and_tensor_of_features():
    """A scalar λ with one κ per feature of (N, C)."""
    assert_same(
        lambda z, kappa: aglu(z, 0.5, kappa, backend="native"),
        (torch.randn(4, 3), torch.tensor([[0.5, 1.0, 2.0]])),
        lambda z, kappa: formula(z, 0.5, kappa),
    )


@pytest.mark.parametrize("layout", FORMATS)
def test_incoming_gradient_in_another_layout(layout):
    other = FORMATS[1 - FORMATS.index(layout)]
    z = torch.randn(2, 8, 5, 7).to(memory_format=layout).requires_grad_()
    grad = torch.randn(2, 8, 5, 7)
    results = [
        torch.autograd.grad(aglu(z, 0.5, 1.1, backend="native"), z, g.to(memory_format=m))[0]
        for g, m in itertools.product([grad], [layout, other])
    ]
    assert torch.equal(*results) and results[0].stride() == z.stride()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bitwise_equal_for_any_number_of_threads(threads):
    torch.manual_seed(0)
    z, before = torch.randn(3, 70, 50, 40), torch.get_num_threads()
    parameters = torch.rand(2, 1, 70, 1, 1).unbind()

    def run(number):
        torch.set_num_threads(number)
        inputs = leaves(z, *parameters, dtype=torch.float32)
        out = aglu(*inputs, backend="native")
        return out, *torch.autograd.grad(out.sum(), inputs)

    try:
        assert all(torch.equal(a, b) for a, b in zip(run(1), run(threads), strict=True))
    finally:
        torch.set_num_threads(before)


def test_bfloat16_rounds_once():
    x, residual = torch.randn(2, 2, 6, 9, 11).bfloat16().unbind()
    scale, shift = torch.rand(2, 2, 6, 1, 1).unbind()
    half = affine_aglu(x, scale, shift, residual, 0.5, 1.1, backend="native")
    single = affine_aglu(x.float(), scale, shift, residual.float(), 0.5, 1.1, backend="native")
    assert half.dtype == torch.bfloat16 and torch.equal(half, single.bfloat16())
    special = torch.tensor([float("inf"), float("nan"), 3e38, -3e38]).bfloat16()
    out = aglu(special, 1.0, 1.0, backend="native")
    assert out[0] == torch.inf and out[1].isnan() and out[2] == special[2] and out[3] == 0


def test_unsupported_tensors():
    z = torch.randn(4, 6, 5, 5)
    for tensor in (z.double(), z.half(), z[..., ::2], z.expand(2, 4, 6, 5, 5)):
        assert not native.supports(tensor, torch.rand(1), torch.rand(1))
        with pytest.raises(ValueError, match="backend=None"):
            aglu(tensor, 0.5, 1.0, backend="native")
    assert not native.supports(z, torch.rand(5), torch.rand(1))
    with pytest.raises(ValueError, match="must be one of eager, native, triton; got 'cuda'"):
        aglu(z, 0.5, 1.0, backend="cuda")


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 40),
    k=st.integers(1, 300),
    spread=st.sampled_from([1.0, 10.0, 100.0]),
    curve=st.sampled_from(["gumbel", "sigmoid", "shared", "per class"]),
    clamp=st.sampled_from([0.0, 10.0]),
    share=st.sampled_from([None, 0.0, 1.0]),
    seed=st.integers(0, 1000),
)
def test_class_loss(n, k, spread, curve, clamp, share, seed):
    """A share of 0 or 1 makes DropLoss deterministic."""
    if spread == 100:
        clamp = 10.0  # otherwise the gradients of λ and κ overflow float32
    torch.manual_seed(seed)
    logits, classes = spread * torch.randn(n, k), torch.randint(0, k + 1, (n,))
    size = (1, k) if curve == "per class" else (1,)
    lambda_, kappa = torch.rand(size) + 0.1, torch.rand(size) + 0.5
    if curve in ("gumbel", "sigmoid"):
        lambda_, kappa = torch.full((1,), float(curve == "sigmoid")), torch.ones(1)
    scarce = None if share is None else torch.rand(k) < 0.5
    label = classes[:, None] == torch.arange(k)

    def expected(z, lam, kap):
        z = z.clamp(-clamp, clamp) if clamp else z
        weights = torch.ones_like(z)
        if scarce is not None:
            spared = (classes < k)[:, None] if share else torch.ones(n, 1, dtype=torch.bool)
            weights[scarce & ~label & spared] = 0
        log_odds = logit_apa(z, lam, kap, backend="eager")
        return F.binary_cross_entropy_with_logits(
            log_odds, label.to(z.dtype), weights, reduction="sum"
        )

    def loss(z, lam, kap):
        return apa_cross_entropy(
            z,
            classes,
            lam,
            kap,
            scarce=scarce,
            share=None if share is None else torch.tensor(share),
            clamp=clamp,
            backend="native",
        )

    assert_same(loss, (logits, lambda_, kappa), expected)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_draws_of_drop_loss(backend):
    """Background losses on scarce classes are kept with probability `share`."""
    logits, classes = torch.zeros(2000, 50, requires_grad=True), torch.full((2000,), 50)
    arguments = {"scarce": torch.arange(50) < 20, "share": torch.tensor(0.3), "backend": backend}
    torch.manual_seed(0)
    loss = apa_cross_entropy(logits, classes, 1.0, 1.0, **arguments)
    (grad,) = torch.autograd.grad(loss, logits)
    kept = grad != 0
    assert kept[:, 20:].all()
    rates = kept[:, :20].double()
    assert abs(rates.mean() - 0.3) < 0.01  # 4.4 standard deviations
    for mean in (rates.mean(dim=0), rates.view(100, 20, 20).mean(dim=(1, 2))):
        assert (mean - 0.3).abs().max() < 0.1
    torch.testing.assert_close(loss.detach(), kept.sum() * torch.log(torch.tensor(2.0)))
    torch.manual_seed(0)
    assert loss == apa_cross_entropy(logits, classes, 1.0, 1.0, **arguments)
    assert loss != apa_cross_entropy(logits, classes, 1.0, 1.0, **arguments)
