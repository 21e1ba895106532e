"""The operators of the activations: what they accept, and that fake and real results agree."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from apa_det import AGLU
from apa_det.activation import affine_aglu
from apa_det.kernels import native_library, ops
from apa_det.kernels.checks import check_activation
from apa_det.kernels.eager import forward as reference

BACKENDS = ["eager", "native"] if native_library.LIBRARY else ["eager"]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:, :1].expand_as(x),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
CASES = [
    ("contiguous", "channels-last", torch.float32, "shared"),
    ("channels-last", "contiguous", torch.bfloat16, "channel"),
    ("channels-last", "expanded", torch.float32, "expanded"),
    ("expanded", "contiguous", torch.float32, "channel"),
    ("transposed", "channels-last", torch.float64, "shared"),
]


def inputs(layout, other, dtype, kind, requires_grad=True):
    """Return x, a tensor in another layout, scale, shift, λ and κ."""
    torch.manual_seed(0)
    x, residual = (
        LAYOUTS[name](torch.randn(2, 3, 4, 5, dtype=dtype)).detach() for name in (layout, other)
    )
    double = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = torch.rand(2, 1, 3, 1, 1, dtype=double).unbind()
    lambda_, kappa = torch.rand(2, 1, 3 if kind == "channel" else 1, 1, 1, dtype=double).unbind()
    if kind == "expanded":
        lambda_ = lambda_.expand(1, 3, 1, 1)
    tensors = x, residual, scale, shift, lambda_, kappa
    return [t.detach().requires_grad_(requires_grad) for t in tensors]


@pytest.mark.parametrize("case", CASES, ids="-".join(("{0[0]}", "{0[3]}")).format)
def test_operators(case):
    x, residual, scale, shift, lambda_, kappa = inputs(*case)
    torch.library.opcheck(ops.activation, (x, lambda_, kappa, "aglu", "auto", 0.3))
    torch.library.opcheck(ops.affine_aglu, (x, scale, shift, residual, lambda_, kappa, "auto"))
    x, grad, scale, shift, lambda_, kappa = inputs(*case, requires_grad=False)
    for needs in ((True, True, True), (False, True, False)):
        arguments = grad, x, lambda_, kappa, "apa", "auto", needs, 0.3
        torch.library.opcheck(ops.activation_backward, arguments)
    for shortcut in (grad, None):
        arguments = grad, x, scale, shift, shortcut, lambda_, kappa, "auto"
        torch.library.opcheck(ops.affine_aglu_backward, arguments)


@pytest.mark.parametrize("case", CASES, ids="-".join(("{0[0]}", "{0[3]}")).format)
def test_a_dispatch_mode_changes_nothing(case):
    """Calls with and without the dispatcher give the same values, gradients and strides."""

    class Watching(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            self.seen.add(function)
            return function(*arguments, **(kwargs or {}))

    tensors = inputs(*case)
    x, residual, scale, shift, *curve = tensors
    weight = torch.randn_like(x)

    def run():
        out = affine_aglu(x, scale, shift, residual, *curve)
        return out, *torch.autograd.grad(out, tensors, weight)

    run()
    direct = run()
    with Watching() as mode:
        watched = run()
    assert {ops.affine_aglu, ops.affine_aglu_backward} <= mode.seen
    for a, b in zip(direct, watched, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change,error,message",
    [
        (dict(z=torch.ones(2, 3, 4, 4).long()), TypeError, "z of .*activation must be"),
        (dict(z=torch.ones(3, 4).to_sparse()), Exception, "Sparse|stride"),
        (dict(kappa=torch.ones(1).double()), TypeError, "kappa of .* must be torch.float32, got"),
        (dict(lambda_=torch.ones(1).half()), TypeError, "lambda_ of .* must be torch.float32 or"),
        (dict(lambda_=torch.ones(5)[:, None]), ValueError, "broadcastable to shape"),
        (dict(lambda_=torch.ones(2, 1, 1, 1, 1)), ValueError, "broadcastable to shape"),
        (dict(form="silu"), ValueError, "form of .* must be apa or log_apa or"),
    ],
)
def test_wrong_arguments(backend, change, error, message):
    arguments = dict(z=torch.ones(2, 3, 4, 4), lambda_=torch.ones(1), kappa=torch.ones(1))
    arguments |= dict(form="aglu", backend=backend)
    with pytest.raises(error, match=message):
        torch.ops.apa_det.activation(**(arguments | change))
    if "z" not in change:
        grad = torch.ones_like(arguments["z"])
        with pytest.raises(error, match=message.replace("activation", "activation_backward")):
            torch.ops.apa_det.activation_backward(
                grad, *(arguments | change).values(), (True, True, True)
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_gradient_or_residual(backend):
    x, one, scale = torch.ones(2, 3, 4, 4), torch.ones(1), torch.ones(1, 3, 1, 1)
    fused, backward = torch.ops.apa_det.affine_aglu, torch.ops.apa_det.affine_aglu_backward
    for wrong, error in ((x[:1], ValueError), (x.bfloat16(), TypeError), (x[..., 0], ValueError)):
        with pytest.raises(error, match="residual of apa_det::affine_aglu must be"):
            fused(x, scale, scale, wrong, one, one, backend)
        with pytest.raises(error, match="grad of apa_det::affine_aglu_backward must be"):
            backward(wrong, x, scale, scale, x, one, one, backend)
        with pytest.raises(error, match="grad of apa_det::activation_backward must be"):
            torch.ops.apa_det.activation_backward(
                wrong, x, one, one, "apa", backend, (True, True, True)
            )
    with pytest.raises(ValueError, match="scale of apa_det::affine_aglu must be broadcastable"):
        fused(x, torch.ones(5), scale, x, one, one, backend)


def test_other_device():
    z, one = torch.ones(3), torch.ones(1)
    with pytest.raises(ValueError, match="kappa of apa_det::activation must be on cpu, got meta"):
        check_activation("activation", "apa", z, {}, {"lambda_": one, "kappa": one.to("meta")})


def test_direct_calls_of_the_native_operator():
    """Tensors that the kernels cannot read are refused, or computed by another backend."""
    for z in (
        torch.randn(3, 4).double(),
        torch.randn(4, 6)[:, ::2],
        torch.randn(3, 1).expand(3, 4),
    ):
        curve = [torch.full((1,), v, dtype=torch.float64) for v in (0.5, 1.1)]
        arguments = z, *(curve if z.dtype == torch.float64 else [t.float() for t in curve]), "aglu"
        with pytest.raises(
            ValueError, match="native backend is not available, or does not support"
        ):
            torch.ops.apa_det.activation(*arguments, "native")
        expected = reference("aglu", z.double(), *curve)
        actual = torch.ops.apa_det.activation(*arguments, "auto")
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["apa", "log_apa", "logit_apa", "aglu"])
def test_nan_parameters_give_nan(backend, form):
    z, one = torch.randn(50), torch.ones(1)
    for curve in ((one * torch.nan, one), (one, one * torch.nan), (-one, one)):
        assert torch.ops.apa_det.activation(z, *curve, form, backend).isnan().all()
        gradients = torch.ops.apa_det.activation_backward(
            z, z, *curve, form, backend, (True, True, True)
        )
        assert all(g.isnan().all() for g in gradients)


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lower_clamp_of_lambda(backend, channels, monkeypatch):
    """The operator clamps λ as torch.clamp does; clamped λ gets no gradient."""
    monkeypatch.setattr("apa_det.kernels.backends.PREFERRED", backend)
    monkeypatch.setattr(ops, "_plans", {})
    layer, z = AGLU(channels, lambda_min=0.3), torch.randn(2, 3, 4, 5, requires_grad=True)
    with torch.no_grad():
        layer.lambda_param.view(-1).copy_(torch.tensor([0.1, 0.3, 0.7][: channels or 1]))

    def gradients(out):
        return torch.autograd.grad(out.square().sum(), [z, *layer.parameters()])

    lambda_, kappa = layer.lambda_param.double().clamp(min=0.3), layer.kappa_param.double()
    expected = gradients(z.double() * (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_))
    for _ in range(2):  # first by the dispatcher, then directly
        for a, b in zip(gradients(layer(z)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert layer.lambda_param.grad is None and gradients(layer(z))[1].flatten()[0] == 0
