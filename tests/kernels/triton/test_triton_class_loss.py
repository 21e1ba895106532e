"""The class loss of the triton backend against float64 formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apa_det.activation import apa_cross_entropy, logit_apa
from apa_det.kernels import triton_kernels

from .conftest import DEVICE, assert_close, on_device

pytest.importorskip("triton")


def bce(logits, gt_classes, lambda_, kappa, weights, clamp):
    targets = F.one_hot(gt_classes, logits.shape[1] + 1)[:, :-1].double()
    log_odds = logit_apa(logits.clamp(-clamp, clamp), lambda_, kappa, backend="eager")
    return F.binary_cross_entropy_with_logits(log_odds, targets, weights, reduction="sum")


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

    inputs = [logits, gt_classes, lambda_, kappa, scarce]
    inputs = [t if t is None else t.to(DEVICE) for t in inputs]
    inputs += [None if share is None else torch.tensor(share, device=DEVICE), 7, clamp]
    assert_close(triton_kernels.class_loss_forward(*inputs).cpu(), expected)
    grad = torch.tensor(0.7, device=DEVICE)
    ours = triton_kernels.class_loss_backward(grad, *inputs)
    for a, b in zip(ours, gradients, strict=True):
        assert_close(a.cpu(), b)


@on_device
def test_class_loss_of_large_logits():
    """A confident error costs |z| in float32 too; a correct score costs 0."""
    z = torch.tensor([[-1e4, -50.0, 50.0, 1e4]], device=DEVICE)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    background = torch.tensor([4], device=DEVICE)
    for lambda_ in (one, zero):
        for column in range(4):
            inputs = z[:, column : column + 1].contiguous(), background - 3, lambda_, one
            loss = triton_kernels.class_loss_forward(*inputs, None, None, 0, 0.0).item()
            assert loss == pytest.approx(max(z[0, column].item(), 0))
            slope = triton_kernels.class_loss_backward(one, *inputs, None, None, 0, 0.0)[0].item()
            assert slope == pytest.approx(float(z[0, column] > 0), abs=1e-6)
    empty = z[:0], background[:0], one, one, None, None, 0, 0.0
    assert triton_kernels.class_loss_forward(*empty) == 0
    assert [g.shape for g in triton_kernels.class_loss_backward(one, *empty)] == [
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
        inputs = z, gt_classes, one, one, scarce, torch.tensor(0.3, device=DEVICE), seed, 0.0
        kept.append(triton_kernels.class_loss_backward(one, *inputs)[0] != 0)
        loss = triton_kernels.class_loss_forward(*inputs)
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
