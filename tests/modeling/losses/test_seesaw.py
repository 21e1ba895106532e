"""Compare Seesaw loss with a slow reimplementation, hand-worked factors and its limits."""

import math

import pytest
import torch
from torch.nn import functional as F

from apa_det.errors import UserError
from apa_det.modeling.losses import SeesawLoss, seesaw_factors, seesaw_loss


def reference(z, gt_classes, counts, p, q):
    """In Python floats, with σ_i >= 0.01."""
    total = 0.0
    for row, i in zip(z.double().tolist(), gt_classes.tolist(), strict=True):
        sigma = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        denominator = math.exp(row[i])
        for j in range(len(row)):
            if j == i:
                continue
            mitigation = compensation = 1.0
            if max(i, j) < len(counts):
                n_i, n_j = max(counts[i], 1), max(counts[j], 1)
                mitigation = min(1.0, n_j / n_i) ** p
                compensation = max(1.0, sigma[j] / max(sigma[i], 0.01)) ** q
            denominator += mitigation * compensation * math.exp(row[j])
        total -= math.log(math.exp(row[i]) / denominator)
    return total / len(gt_classes)


@pytest.mark.parametrize("p,q", [(0.8, 2.0), (0.0, 2.0), (0.8, 0.0), (1.0, 0.5)])
def test_against_reference(p, q):
    z = torch.randn(20, 5) * 4
    gt_classes, counts = torch.randint(5, (20,)), torch.tensor([0, 3, 100, 7])
    expected = reference(z, gt_classes, counts.tolist(), p, q)
    assert seesaw_loss(z, gt_classes, counts, p, q).item() == pytest.approx(expected, rel=1e-5)


def test_hand_worked_factors():
    """σ = 0.2, 0.4, 0.3, and 0.1 for the background; 8 and 2 samples of the first two classes."""
    z = torch.tensor([0.2, 0.4, 0.3, 0.1]).log().expand(3, 4)
    counts, gt_classes = torch.tensor([8, 2, 8]), torch.tensor([0, 1, 3])
    factors = seesaw_factors(z, gt_classes, counts, p=0.5, q=2.0).exp()
    expected = [
        [1, math.sqrt(2 / 8) * 2**2, 1.5**2, 1],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    torch.testing.assert_close(factors, torch.tensor(expected))


def test_without_factors_it_is_the_cross_entropy():
    z, gt_classes = torch.randn(9, 4), torch.arange(9) % 4
    expected = F.cross_entropy(z, gt_classes)
    torch.testing.assert_close(seesaw_loss(z, gt_classes, torch.tensor([5, 1, 9]), 0, 0), expected)
    equal = torch.full((3,), 5)
    torch.testing.assert_close(seesaw_loss(z, gt_classes, equal, 0.8, 0), expected)
    background = torch.full((9,), 3)
    loss = seesaw_loss(z, background, torch.tensor([5, 1, 9]))
    torch.testing.assert_close(loss, F.cross_entropy(z, background))


def test_gradients():
    """Factors are constants; gradcheck where they do not depend on the logits (q = 0)."""
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gt_classes, counts = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([9, 1, 4])
    assert torch.autograd.gradcheck(lambda z: seesaw_loss(z, gt_classes, counts, 0.8, 0.0), z)
    (gradient,) = torch.autograd.grad(seesaw_loss(z, gt_classes, counts), z)
    adjusted = (z + seesaw_factors(z, gt_classes, counts)).softmax(dim=1)
    torch.testing.assert_close(gradient, (adjusted - F.one_hot(gt_classes, 4)) / 6)


@pytest.mark.parametrize("value", [-1e4, 200.0, 1e4])
def test_any_logit(value):
    z = torch.zeros(4, 4)
    z[:, 1] = value
    z.requires_grad_()
    loss = seesaw_loss(z, torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 10**9]))
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_counts_in_training():
    loss = SeesawLoss(3)
    gt_classes = torch.tensor([0, 3, 0, 2, 3])
    for n in (1, 2):
        value = loss(torch.ones(5, 4), gt_classes)
        assert loss.sample_counts.tolist() == [2 * n, 0, n]
    torch.testing.assert_close(value, seesaw_loss(torch.ones(5, 4), gt_classes, loss.sample_counts))
    loss.eval()(torch.ones(5, 4), gt_classes)
    assert loss.train()(torch.ones(0, 4), gt_classes[:0]) == 0
    assert loss.sample_counts.tolist() == [4, 0, 2]
    assert loss.state_dict()["sample_counts"].dtype == torch.int64
    with pytest.raises(UserError, match="must be >= 0, got -1 and 2"):
        SeesawLoss(3, p=-1)
