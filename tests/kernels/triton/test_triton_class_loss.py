"""The class loss of the triton backend against float64 formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apa_det.activation import apa_cross_entropy, logit_apa
from apa_det.kernels import triton_kernels
from apa_det.kernels.eager_class_loss import Inputs, class_loss_backward, class_loss_forward

from .conftest import DEVICE, assert_close, double, on_device

pytest.importorskip("triton")


def bce(logits, gt_classes, lambda_, kappa, weights, clamp):
    targets = F.one_hot(gt_classes, logits.shape[1] + 1)[:, :-1].double()
    log_odds = logit_apa(logits.clamp(-clamp, clamp), lambda_, kappa, backend="eager")
    return F.binary_cross_entropy_with_logits(log_odds, targets, weights, reduction="sum")


def on_gpu(inputs):
    return Inputs(*(t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in inputs))


@on_device
@pytest.mark.parametrize(
    "n,k,per_class,clamp,share",
    [
        (37, 130, "", 0.0, None),
        (20, 130, "", 3.0, 0.0),
        (20, 130, "", 0.0, 1.0),
        (20, 130, "λκ", 3.0, None),
        (10, 5, "λκ", 3.0, 1.0),
        (10, 5, "κ", 0.0, 0.0),
        (1, 1, "λ", 0.0, None),
    ],
)
def test_class_loss(n, k, per_class, clamp, share):
    torch.manual_seed(0)
    logits = 4 * torch.randn(n, k)
    gt_classes = torch.randint(0, k + 1, (n,))
    gt_classes[::2] = k
    lambda_ = torch.rand(1, k) if "λ" in per_class else torch.zeros(1)
    kappa = torch.rand(k) + 0.5 if "κ" in per_class else torch.ones(())
    scarce = None if share is None else torch.rand(k) < 0.6
    weights = torch.ones(n, k)
    if scarce is not None:
        dropped = scarce & (gt_classes[:, None] != torch.arange(k))
        dropped &= (gt_classes[:, None] < k) | (share == 0)
        weights[dropped] = 0
    leaves = [t.double().requires_grad_() for t in (logits, lambda_, kappa)]
    expected = bce(leaves[0], gt_classes, *leaves[1:], weights, clamp or torch.inf)
    gradients = torch.autograd.grad(0.7 * expected, leaves)

    inputs = Inputs(logits, gt_classes, lambda_, kappa, clamp=clamp)
    if share is not None:
        inputs = inputs._replace(scarce=scarce, share=torch.tensor(share))
    inputs = on_gpu(inputs)._replace(seed=None if share is None else torch.tensor(7))
    assert_close(triton_kernels.class_loss_forward(inputs).cpu(), expected)
    grad = torch.tensor(0.7, device=DEVICE)
    ours = triton_kernels.class_loss_backward(grad, inputs)
    for a, b in zip(ours, gradients, strict=True):
        assert_close(a.cpu(), b)


@on_device
@pytest.mark.parametrize("gamma,shifted", [(0.0, False), (0.0, True), (2.0, False), (0.5, True)])
def test_weights_shift_and_gamma(gamma, shifted):
    """Against the eager backend in float64, which is tested against the formula."""
    torch.manual_seed(0)
    n, k = 20, 130
    inputs = Inputs(
        4 * torch.randn(n, k),
        torch.randint(0, k + 1, (n,)),
        torch.rand(1, k) + 0.1,
        torch.ones(()),
        weights=torch.rand(n),
        shift=torch.randn(k) if shifted else None,
        positive_weights=torch.rand(k),
        negative_weights=torch.rand(k),
        gamma=gamma,
        clamp=6.0,
    )
    exact = Inputs(*double(inputs))
    assert_close(triton_kernels.class_loss_forward(on_gpu(inputs)).cpu(), class_loss_forward(exact))
    grad = torch.tensor(0.7)
    ours = triton_kernels.class_loss_backward(grad.to(DEVICE), on_gpu(inputs))
    for a, b in zip(ours, class_loss_backward(grad.double(), exact), strict=True):
        assert_close(a.cpu(), b)


@on_device
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("name", ["logits", "lambda_", "kappa", "weights", "shift"])
def test_nan(name, gamma):
    """NaN anywhere, also where DropLoss drops the loss, gives NaN."""
    n, k = 3, 4
    inputs = on_gpu(
        Inputs(
            torch.zeros(n, k),
            torch.tensor([1, 2, 4]),
            torch.ones(1, k),
            torch.ones(1, k),
            weights=torch.ones(n),
            shift=torch.zeros(k) if gamma or name == "shift" else None,
            scarce=torch.ones(k, dtype=torch.bool),
            share=torch.tensor(0.0),
            gamma=gamma,
        )
    )._replace(seed=torch.tensor(7))
    getattr(inputs, name).view(-1)[0] = float("nan")
    assert triton_kernels.class_loss_forward(inputs).isnan()
    gradients = triton_kernels.class_loss_backward(torch.ones((), device=DEVICE), inputs)
    assert all(g.isnan().any() for g in gradients)


@on_device
def test_class_loss_of_large_logits():
    """A confident error costs |z| in float32 too; a correct score costs 0."""
    z = torch.tensor([[-1e4, -50.0, 50.0, 1e4]], device=DEVICE)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    background = torch.tensor([4], device=DEVICE)
    for lambda_ in (one, zero):
        for column in range(4):
            logit = z[:, column : column + 1].contiguous()
            for shift in (None, zero):  # both forms of the loss
                inputs = Inputs(logit, background - 3, lambda_, one, shift=shift)
                loss = triton_kernels.class_loss_forward(inputs).item()
                assert loss == pytest.approx(max(z[0, column].item(), 0))
                slope = triton_kernels.class_loss_backward(one, inputs)[0].item()
                assert slope == pytest.approx(float(z[0, column] > 0), abs=1e-6)
    empty = Inputs(z[:0], background[:0], one, one)
    assert triton_kernels.class_loss_forward(empty) == 0
    assert [g.shape for g in triton_kernels.class_loss_backward(one, empty)] == [
        (0, 4),
        (1,),
        (1,),
    ]


@on_device
def test_draws_of_drop_loss():
    """Forward and backward drop the same background losses, at the expected rate per class."""
    n, k = 60, 100
    z, one = torch.zeros(n, k, device=DEVICE), torch.ones(1, device=DEVICE)
    gt_classes = torch.full((n,), k, device=DEVICE)
    scarce = torch.arange(k, device=DEVICE) < 75
    kept = []
    for seed in (3, 2**62 - 1):
        inputs = Inputs(z, gt_classes, one, one, scarce=scarce, seed=torch.tensor(seed))
        inputs = inputs._replace(share=torch.tensor(0.3, device=DEVICE))
        kept.append(triton_kernels.class_loss_backward(one, inputs)[0] != 0)
        loss = triton_kernels.class_loss_forward(inputs)
        assert loss.item() == pytest.approx(kept[-1].sum().item() * np.log(2), rel=1e-5)
        assert kept[-1][:, 75:].all()
        shares = kept[-1][:, :75].float()
        assert abs(shares.mean() - 0.3) < 0.03
        assert (shares.mean(dim=0) - 0.3).abs().max() < 0.3  # 5 standard deviations
        assert (shares.mean(dim=1) - 0.3).abs().max() < 0.27
    assert 0.5 < (kept[0] == kept[1])[:, :75].float().mean() < 0.66


@on_device
def test_backend_argument():
    logits = torch.randn(8, 6, device=DEVICE, requires_grad=True)
    gt_classes = torch.arange(8, device=DEVICE).clamp(max=6)
    losses = [apa_cross_entropy(logits, gt_classes, 0, 1, backend=b) for b in ("triton", "eager")]
    assert_close(*losses)
    assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))
