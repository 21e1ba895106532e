"""The class loss: its operator's contract, its general form, and torch.compile."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from torch._dynamo.testing import CompileCounterWithBackend

from apa_det.activation import apa_cross_entropy
from apa_det.kernels import native
from apa_det.kernels.class_loss import _checked, class_loss
from apa_det.kernels.eager_class_loss import Inputs
from apa_det.modeling.losses import (
    SIGMOID,
    DropLoss,
    EffectiveClassMarginLoss,
    EqualizationLossV2,
    FocalLoss,
)

N, K = 6, 5
HAS_NATIVE = native.supports(torch.zeros(1, 1))
BACKENDS = ["eager", pytest.param("native", marks=pytest.mark.skipif(not HAS_NATIVE, reason=""))]


def make(general=False, drop=False, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    curve = torch.float64 if dtype == torch.float64 else torch.float32
    values = dict(
        logits=2 * torch.randn(N, K, dtype=dtype),
        gt_classes=torch.tensor([0, 1, 4, 5, 5, 2]),
        lambda_=torch.rand(1, K, dtype=curve) + 0.1,
        kappa=torch.rand(1, dtype=curve) + 0.5,
        clamp=10.0,
    )
    if general:
        names = {"weights": N, "shift": K, "positive_weights": K, "negative_weights": K}
        values |= {name: torch.rand(size, dtype=curve) for name, size in names.items()}
        values["gamma"] = 1.5
    if drop:
        values |= dict(scarce=torch.arange(K) < 3, share=torch.tensor(0.5), seed=torch.tensor(7))
    return Inputs(**values)._replace(**changes)


def formula(i, lambda_, kappa, z):
    """The general loss without DropLoss, in float64."""
    z = z.clamp(-i.clamp, i.clamp)
    eta = (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)
    odds = eta / (1 - eta) * i.shift.double().exp()
    p = odds / (1 + odds)
    positive = -i.positive_weights * (1 - p) ** i.gamma * p.log()
    negative = -i.negative_weights * p**i.gamma * (1 - p).log()
    is_label = F.one_hot(i.gt_classes, K + 1)[:, :K] == 1
    return (i.weights[:, None] * torch.where(is_label, positive, negative)).sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_general_form(backend, gamma):
    inputs = make(general=True, gamma=gamma)
    tensors = inputs.lambda_, inputs.kappa, inputs.logits
    double = [t.double().requires_grad_() for t in tensors]
    single = [t.clone().requires_grad_() for t in tensors]
    expected = 0.7 * formula(inputs, *double)
    ours = inputs._replace(lambda_=single[0], kappa=single[1], logits=single[2])
    loss = 0.7 * class_loss(*ours, backend)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(loss, single), torch.autograd.grad(expected, double)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_logit(backend, gamma, value):
    """A correct score costs nothing, also beside others; loss and gradients are finite."""
    z = torch.full((2, K), value, requires_grad=True)
    labels = torch.tensor([0, K])
    loss = apa_cross_entropy(z, labels, 1.0, 1.0, shift=torch.ones(K), gamma=gamma, backend=backend)
    wrong = 1 if value < 0 else 2 * K - 1
    assert loss.item() == pytest.approx(wrong * (abs(value) + (1 if value > 0 else -1)), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, z)
    expected = torch.full_like(z, float(value > 0))
    expected[0, 0] = -float(value < 0)
    torch.testing.assert_close(grad, expected)


LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.t().clone().t(),
    "sliced": lambda t: F.pad(t, (1, 1))[:, 1:-1],
    "expanded": lambda t: t[:1].expand(len(t), -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_operator(backend, layout):
    """opcheck of forward and backward; every layout gives the result of the contiguous one."""
    cases = [(torch.float32, False, False), (torch.bfloat16, True, True)]
    if backend == "eager":
        cases += [(torch.float16, False, True), (torch.float64, True, False)]
    for dtype, general, drop in cases:
        inputs = make(general, drop, dtype)
        z = LAYOUTS[layout](inputs.logits)
        labels = torch.stack([inputs.gt_classes, inputs.gt_classes], dim=1)[:, 0]
        ours = inputs._replace(logits=z, gt_classes=labels)
        plain = inputs._replace(logits=z.contiguous())
        grad = torch.tensor(0.7, dtype=inputs.lambda_.dtype)
        backward = torch.ops.apa_det.class_loss_backward.default
        assert torch.equal(class_loss(*ours, backend), class_loss(*plain, backend))
        results = zip(backward(grad, *ours, backend), backward(grad, *plain, backend), strict=True)
        assert all(torch.equal(a, b) for a, b in results)
        torch.library.opcheck(backward, (grad, *ours, backend))
        trained = ours._replace(
            logits=z.detach().requires_grad_(),
            lambda_=inputs.lambda_.requires_grad_(),
            kappa=inputs.kappa.requires_grad_(),
        )
        torch.library.opcheck(class_loss, (*trained, backend))


@pytest.mark.parametrize(
    "changes,error,message",
    [
        ({"gt_classes": torch.zeros(N, dtype=torch.int32)}, TypeError, "int64, got torch.int32"),
        ({"gt_classes": torch.zeros(2, dtype=torch.int64)}, ValueError, r"\(6,\), got \(2,\)"),
        ({"gt_classes": torch.zeros(N, 1, dtype=torch.int64)}, ValueError, r"\(6,\), got \(6, 1"),
        ({"gt_classes": torch.full((N,), K + 1)}, ValueError, r"in \[0, 5\], got 6"),
        ({"gt_classes": torch.full((N,), -1)}, ValueError, r"in \[0, 5\], got -1"),
        ({"logits": torch.zeros(N, K, 1)}, ValueError, r"\(N, K\), got \(6, 5, 1\)"),
        ({"logits": torch.zeros(N, K, dtype=torch.int64)}, TypeError, "got torch.int64"),
        (
            {"logits": torch.zeros(N, K).to_sparse()},
            ValueError,
            "dense tensor, got torch.sparse_coo",
        ),
        ({"logits": torch.zeros(N, K, dtype=torch.float64)}, TypeError, "lambda_ .*float64, got"),
        ({"lambda_": torch.ones(1, K + 1)}, ValueError, r"lambda_ .*got \(1, 6\)"),
        ({"lambda_": torch.ones(N, 1)}, ValueError, r"lambda_ .*got \(6, 1\)"),
        (
            {"lambda_": torch.ones(1, dtype=torch.bfloat16)},
            TypeError,
            "lambda_ .*got torch.bfloat16",
        ),
        ({"kappa": torch.ones(1, dtype=torch.float64)}, TypeError, "kappa .*float32, got"),
        ({"weights": torch.ones(N + 1)}, ValueError, "weights .*got"),
        ({"shift": torch.ones(K, dtype=torch.float64)}, TypeError, "shift .*got torch.float64"),
        ({"positive_weights": torch.ones(1)}, ValueError, "positive_weights .*got"),
        ({"negative_weights": torch.ones(K + 1)}, ValueError, "negative_weights .*got"),
        ({"scarce": torch.ones(K)}, TypeError, "scarce .*bool, got torch.float32"),
        ({"scarce": torch.ones(K + 1, dtype=torch.bool)}, ValueError, "scarce .*got"),
        ({"share": torch.tensor(0.5, dtype=torch.float64)}, TypeError, "share .*got torch.float64"),
        ({"share": None}, ValueError, "scarce, share and seed .* belong together"),
        ({"seed": torch.tensor(1.0)}, TypeError, "seed .*int64, got torch.float32"),
        ({"gamma": -1.0}, ValueError, "gamma and clamp .* must be >= 0, got -1.0 and"),
        ({"clamp": float("nan")}, ValueError, "must be >= 0, got 1.5 and nan"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors(backend, changes, error, message):
    inputs = make(general=True, drop=True, **changes)
    for operator, grad in ((class_loss, ()), (torch.ops.apa_det.class_loss_backward, (1,))):
        grad = [torch.tensor(float(g)) for g in grad]
        with pytest.raises(error, match=message):
            operator(*grad, *inputs, backend)


def test_errors_of_backend_and_gradients():
    for name, dtype in (("native", torch.float64), ("native", torch.float16)):
        with pytest.raises(ValueError, match="native backend is not available, or does not"):
            class_loss(*make(dtype=dtype), name)
    with pytest.raises(ValueError, match="must be one of eager, native, triton; got 'cuda'"):
        class_loss(*make(), "cuda")
    elsewhere = make(shift=torch.ones(K, device="meta"))  # the operator would run its fake
    with pytest.raises(ValueError, match="shift .* must be on cpu, got meta"):
        _checked("class_loss", *elsewhere, "eager")
    grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"grad .*got \(2,\)"):
        torch.ops.apa_det.class_loss_backward(grad, *make(), "eager")
    inputs = make(general=True)
    with pytest.raises(RuntimeError, match="no gradient for shift: detach it"):
        class_loss(*inputs._replace(shift=inputs.shift.requires_grad_()), "eager")


@pytest.mark.parametrize("name", [*Inputs._fields[:1], *Inputs._fields[2:8], "share"])
@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan(backend, general, name):
    """NaN anywhere, also where DropLoss drops the loss, gives NaN."""
    inputs = make(general, drop=True)
    tensor = getattr(inputs, name)
    if tensor is None:
        return
    tensor.view(-1)[0 if name != "negative_weights" else 4] = float("nan")
    assert class_loss(*inputs, backend).isnan()
    by_logits, by_lambda, by_kappa = torch.ops.apa_det.class_loss_backward(
        torch.tensor(1.0), *inputs, backend
    )
    assert by_logits.isnan().any() and by_lambda.isnan().any() and by_kappa.isnan().all()


def test_many_rows_of_a_label():
    """Rows beyond 256 × 32 are processed in larger parts; the sum stays that of all rows."""
    n = 20_000
    z = torch.randn(n, 2, requires_grad=True)
    labels = torch.randint(0, 3, (n,))
    losses = [apa_cross_entropy(z, labels, 1.0, 1.0, backend=b) for b in ("eager", None)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in losses))


@pytest.mark.parametrize(
    "loss", [FocalLoss(3), EqualizationLossV2(3), EffectiveClassMarginLoss(3, datasets=())]
)
def test_losses_are_compiled_once(loss):
    """A graph for the first number of proposals, one for all others; the values of eager mode."""
    torch._dynamo.reset()
    curve, outputs = (torch.rand(1, 3, requires_grad=True), torch.ones(1, 3)), 3
    if loss.num_outputs:
        loss._class_values, curve, outputs = torch.tensor([1, 20, 300]), SIGMOID, 4
    plain, counter = copy.deepcopy(loss), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for n in (40, 41, 42, 43):
        z, labels = torch.randn(n, outputs, requires_grad=True), torch.randint(0, 4, (n,))
        values = compiled(z, labels, curve), plain(z, labels, curve)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in values))
    assert counter.frame_count <= 2


def test_drop_loss_is_compiled_once():
    """A graph for the first number of proposals, one for all others, and different draws."""
    torch._dynamo.reset()
    MetadataCatalog.get("compiled_drop_loss").set(
        class_image_count=[{"id": i, "image_count": n} for i, n in enumerate([1, 2, 300])],
        num_images=1000,
    )
    try:
        loss = DropLoss(3, datasets="compiled_drop_loss", threshold=0.01)
        loss.look_up()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, backend=counter, fullgraph=True)
        values = []
        for n in (400, 401, 402, 403, 403, 403):
            z = torch.zeros(n, 3, requires_grad=True)
            labels = torch.full((n,), 3)
            labels[0], labels[1] = 0, 2  # half of the foreground is scarce
            value = compiled(z, labels, (0.0, 1.0))
            value.backward()
            kept = (z.grad[2:, :2] != 0).double().mean()
            assert abs(kept - 0.5) < 0.1  # 5 standard deviations
            values.append(value.item())
        assert counter.frame_count <= 2
        assert len(set(values[-3:])) == 3
    finally:
        MetadataCatalog.pop("compiled_drop_loss")
