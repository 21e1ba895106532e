"""APA and affine AGLU of the triton backend against mpmath and the eager backend in float64."""

import itertools

import mpmath
import numpy as np
import pytest
import torch

from apa_det.activation import aglu
from apa_det.kernels import eager, triton_kernels

from .conftest import DEVICE, INTERPRETED, ULP, assert_close, double, on_device

triton = pytest.importorskip("triton")

FORMS = ["apa", "log_apa", "logit_apa", "aglu"]


def exact(form, z, lambda_, kappa):
    """Return the value and its derivatives for z, λ and κ, in mpmath."""
    z, lambda_, kappa = map(mpmath.mpf, (z, lambda_, kappa))
    x = lambda_ * mpmath.exp(-kappa * z)
    y = mpmath.log1p(x) / lambda_
    s = x / (1 + x) / lambda_
    slopes = kappa * s, (y - s) / lambda_, z * s  # of log η
    if form == "log_apa":
        return (-y, *slopes)
    eta = mpmath.exp(-y)
    if form == "apa":
        return (eta, *(eta * slope for slope in slopes))
    return (z * eta, eta + z * eta * slopes[0], *(z * eta * slope for slope in slopes[1:]))


@on_device
@pytest.mark.parametrize("form", ["apa", "log_apa", "aglu"])
def test_backward_stable(form):
    """As in test_activation.py, at fewer points, one channel per point."""
    mpmath.mp.dps = 60
    magnitudes = np.logspace(-6, 4, 6)
    zs = np.float32([0.0, *magnitudes, *-magnitudes]).tolist()
    lambdas = np.float32([1e-8, 1e-4, 1e-2, 0.3, 0.5, 1, 10]).tolist()
    kappas = np.float32([-3, -1e-3, 0.1, 1, 5]).tolist()
    points = list(itertools.product(zs, lambdas, kappas))
    inputs = torch.tensor(points, device=DEVICE).T[:, None].contiguous().unbind()
    out = triton_kernels.forward(form, *inputs)
    gradients = triton_kernels.backward(form, torch.ones_like(out), *inputs)
    results = torch.cat([out, *gradients]).T.double().tolist()
    wiggles = [1 - 64 * ULP, 1, 1 + 64 * ULP]
    for point, result in zip(points, results, strict=True):
        expected = exact(form, *point)
        around = None
        for k, (value, true) in enumerate(zip(result, expected, strict=True)):
            error = abs(value - true) - 4 * ULP * abs(true)
            if abs(true) > torch.finfo(torch.float32).max or error <= 1e-20:
                continue
            around = around or [
                exact(form, *(p * w for p, w in zip(point, wiggle, strict=True)))
                for wiggle in itertools.product(wiggles, repeat=3)
            ]
            assert error <= max(abs(a[k] - true) for a in around), (point, k, value, float(true))


@on_device
@pytest.mark.parametrize("form", FORMS)
def test_finite(form):
    """No NaN for finite inputs, no Inf where the true value is finite, and NaN for NaN."""
    z = torch.cat([torch.logspace(-30, 38, 40), torch.zeros(1)])
    z = torch.cat([z, -z]).to(DEVICE)
    grid = itertools.product([0, 1e-20, 1e-8, 1e-4, 0.1, 1, 100], [-3.0, -1, 0, 1, 5])
    lambda_, kappa = torch.tensor(list(grid), device=DEVICE).T[:, None].contiguous().unbind()
    z = z[:, None].expand(-1, kappa.numel()).contiguous()
    out = triton_kernels.forward(form, z, lambda_, kappa)
    moderate = (z * kappa).abs() < (torch.inf if form in ("apa", "aglu") else 1e4)
    assert not out.isnan().any() and out[moderate].isfinite().all()
    z = z.reshape(-1, 1, kappa.numel())
    for row in z[::5]:
        gradients = triton_kernels.backward(form, torch.ones_like(row), row, lambda_, kappa)
        assert not any(g.isnan().any() for g in gradients)

    z = torch.tensor([torch.nan, 1.0], device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    gradients = triton_kernels.backward(form, torch.ones_like(z), z, one, one)
    for t in (triton_kernels.forward(form, z, one, one), gradients[0]):
        assert t.isnan().tolist() == [True, False]
    assert all(g.isnan() for g in gradients[1:])
    for curve in ((-one, one), (one * torch.nan, one), (one, one * torch.nan)):
        assert triton_kernels.forward(form, z[1:], *curve).isnan()
        gradients = triton_kernels.backward(form, torch.ones_like(one), z[1:], *curve)
        assert all(g.isnan() for g in gradients)


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_types_round_once(form, dtype):
    z = torch.linspace(-200, 200, 201, device=DEVICE).to(dtype)[:, None].expand(-1, 16).contiguous()
    grid = list(itertools.product([1e-4, 0.03, 1, 3], [-1, 0.5, 1.1, 3]))
    lambda_, kappa = torch.tensor(grid, device=DEVICE).T[:, None].contiguous().unbind()
    out = triton_kernels.forward(form, z, lambda_, kappa)
    assert torch.equal(out, triton_kernels.forward(form, z.float(), lambda_, kappa).to(dtype))
    grad = torch.randn(z.shape, device=DEVICE).to(dtype)
    half = triton_kernels.backward(form, grad, z, lambda_, kappa)[0]
    single = triton_kernels.backward(form, grad.float(), z.float(), lambda_, kappa)[0]
    assert half.dtype == dtype and torch.equal(half, single.to(dtype))
    if form in ("apa", "aglu"):
        assert out.isfinite().all() and half.isfinite().all()


SHAPES = {
    "row": (1500,),
    "rows": (2, 5, 7, 9),
    "long rows": (1, 2, 33, 36),
    "columns": (2, 5, 7, 9),
    "many columns": (1, 140, 3, 4),
    "no rows": (3, 6),
    "pixels": (3, 6, 1, 1),
    "volume": (2, 3, 2, 4, 5),
    "one": (1, 1, 1, 1),
    "number": (),
    "empty": (0, 5, 2, 2),
    "no pixels": (2, 5, 0, 2),
}


def tensor_of(name):
    x = 3 * torch.randn(SHAPES[name], device=DEVICE)
    return x.to(memory_format=torch.channels_last) if "columns" in name else x


def parameter_of(x, along, low=-1.0):
    """Return a parameter that varies along some of the dimensions "n" and "c"."""
    shape = [size if name in along else 1 for size, name in zip(x.shape, "nc", strict=False)]
    return torch.empty(shape + [1] * (x.dim() - 2), device=DEVICE).uniform_(low, 1.5)


@on_device
@pytest.mark.parametrize("along", ["", "c", "nc"])
@pytest.mark.parametrize("name", SHAPES)
def test_layouts_and_sizes(name, along):
    torch.manual_seed(0)
    z = tensor_of(name)
    if along and z.dim() < 2:
        pytest.skip("no channels")
    parameters = parameter_of(z, along, 0.01), parameter_of(z, along)
    assert triton_kernels.supports(z, *parameters)
    grad = torch.randn(z.shape, device=DEVICE)  # contiguous, maybe unlike z
    for form in FORMS if name == "rows" else ["aglu"]:
        out = triton_kernels.forward(form, z, *parameters)
        assert out.stride() == torch.empty_like(z).stride()
        assert_close(out, eager.forward(form, *double([z, *parameters])))
        ours = triton_kernels.backward(form, grad, z, *parameters)
        expected = eager.backward(form, *double([grad, z, *parameters]))
        assert [g.shape for g in ours] == [t.shape for t in (z, *parameters)]
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


@on_device
@pytest.mark.parametrize("alongs", ["c c  ", "nc nc c ", "nc c  nc", "n c n c"])
@pytest.mark.parametrize("name", ["rows", "columns", "pixels", "empty"])
def test_affine_aglu(name, alongs):
    torch.manual_seed(0)
    x = tensor_of(name)
    parameters = [parameter_of(x, along, 0.01) for along in alongs.split(" ")]
    residual, grad = torch.randn(x.shape, device=DEVICE), torch.randn(x.shape, device=DEVICE)
    for shortcut in (None, residual):
        inputs = [x, *parameters[:2], shortcut, *parameters[2:]]
        assert_close(
            triton_kernels.affine_aglu_forward(*inputs), eager.affine_aglu_forward(*double(inputs))
        )
        ours = triton_kernels.affine_aglu_backward(grad, *inputs)
        expected = eager.affine_aglu_backward(*double([grad, *inputs]))
        for a, b in zip(ours, expected, strict=True):
            assert_close(a, b)


@on_device
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("each,limit", [(4, 99), (1, 2)])
def test_programs_with_many_tiles(channels_last, each, limit, monkeypatch):
    for name, value in dict(ENOUGH_TILES=1, TILES=each, MAX_TILES=limit, TILE_CHANNELS=1).items():
        monkeypatch.setattr(triton_kernels, f"_{name}", value)
    x = torch.randn(1, 2, 64, 63, device=DEVICE)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    inputs = [x, *(parameter_of(x, along, 0.01) for along in ("c", "c", "", ""))]
    inputs.insert(3, None)
    grad = torch.randn_like(x)
    ours = triton_kernels.affine_aglu_backward(grad, *inputs)
    expected = eager.affine_aglu_backward(*double([grad, *inputs]))
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)


@on_device
def test_needed_gradients_are_deterministic():
    z, grad = torch.randn(2, 2, 4, 15, 10, device=DEVICE)
    parameters = torch.tensor(0.5, device=DEVICE), torch.tensor([1.1], device=DEVICE)
    whole = triton_kernels.backward("aglu", grad, z, *parameters)
    for needs in itertools.product([True, False], repeat=3):
        some = triton_kernels.backward("aglu", grad, z, *parameters, needs)
        for part, gradient, need in zip(some, whole, needs, strict=True):
            assert torch.equal(part, gradient) if need else part is None


@on_device
@pytest.mark.parametrize("along", ["", "c", "nc"])
def test_lower_clamp_of_lambda(along):
    z, grad = torch.randn(2, 2, 3, 4, 5, device=DEVICE).unbind()
    inputs = z, parameter_of(z, along, 0.01), parameter_of(z, along)
    assert_close(
        triton_kernels.forward("aglu", *inputs, 0.7), eager.forward("aglu", *double(inputs), 0.7)
    )
    ours = triton_kernels.backward("aglu", grad, *inputs, lambda_min=0.7)
    expected = eager.backward("aglu", *double([grad, *inputs]), lambda_min=0.7)
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b)
    assert ((ours[1] == 0) == (inputs[1] < 0.7)).all()


@on_device
def test_backend_argument():
    z = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)
    lambda_ = torch.tensor(0.5, device=DEVICE, requires_grad=True)

    def function(z, lambda_):
        return aglu(z, lambda_, 1.1, backend="triton").sum()

    expected = torch.autograd.grad(aglu(z, lambda_, 1.1, backend="eager").sum(), [z, lambda_])
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for f in (function, compiled):
        for a, b in zip(torch.autograd.grad(f(z, lambda_), [z, lambda_]), expected, strict=True):
            assert_close(a, b)


@on_device
def test_unsupported_tensors():
    x, one = torch.randn(2, 3, 4, 4, device=DEVICE), torch.ones((), device=DEVICE)
    assert triton_kernels.supports(x, one, one)
    for other in (x.double(), x.transpose(2, 3), x[..., ::2], x.long()):
        assert not triton_kernels.supports(other, one, one)
    for shape in [(4,), (3, 1, 4), (1, 1, 4, 1), (2, 1, 1, 1, 1), (1, 2, 1, 1)]:
        assert not triton_kernels.supports(x, one.expand(shape), one)
    assert not triton_kernels.supports(x, one.double(), one)
    x = one.expand(65536, 3, 2, 2)
    assert not triton_kernels.supports(x.contiguous(), one.expand(3, 1, 1), one)


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter can start at any program")
def test_beyond_2_to_the_31_elements(monkeypatch):
    """Run the last tile of a tensor whose other pages are never touched."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    size, block = 2**31 + 48, 2048
    z = torch.empty(size, dtype=torch.float16)
    z[-100:] = torch.linspace(-3, 3, 100)
    first = (size - 1) // block

    def program(self, axis):
        number = first if axis == 0 else 0
        return TensorHandle(np.array([number], dtype=np.int32), triton.language.int32)

    one = torch.ones(1)
    expected = aglu(z[-100:].clone(), 1, 1, backend="eager")
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", program)
    monkeypatch.setattr(triton_kernels, "_ceil", lambda a, b: 1)
    monkeypatch.setattr(triton_kernels, "_NUM_THREADS", block // 16)
    layout = triton_kernels.plan("aglu", z, {"lambda_": one, "kappa": one})
    triton_kernels._launch_forward(layout, z, None, None, None, one, one, -torch.inf, z)
    assert torch.equal(z[-48:], expected[-48:])
