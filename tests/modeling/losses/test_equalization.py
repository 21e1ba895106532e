"""Compare equalization losses with hand-worked cases, autograd and their limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from apa_det import apa
from apa_det.modeling.losses import (
    SIGMOID,
    EqualizationLoss,
    EqualizationLossV2,
    binary_cross_entropy,
    equalization_loss_v2,
    equalization_weights,
    gradients_by_class,
    log_odds,
)

GT = torch.tensor([0, 2, 3, 1, 3, 0])
CURVES = [SIGMOID, (0.0, 1.0), (0.5, 1.3)]


@pytest.mark.parametrize("curve", CURVES)
def test_rare_classes_get_no_foreground_negatives(dataset, curve):
    """Classes 0 and 1 are in less than a tenth of the images; background losses are kept."""
    loss = EqualizationLoss(3, datasets=dataset([1, 9, 10]), threshold=0.1)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    gt_classes = torch.tensor([0, 2, 3, 1])
    weights = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]])
    scores = apa(z, *curve)
    likelihood = torch.where(F.one_hot(gt_classes, 4)[:, :3] == 1, scores, 1 - scores)
    expected = -(weights * likelihood.log()).sum() / 4
    value = loss(z, gt_classes, curve)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, z)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("curve", CURVES)
def test_without_rare_classes_it_is_the_cross_entropy(dataset, curve):
    z = torch.randn(6, 3)
    loss = EqualizationLoss(3, datasets=dataset([10, 20, 30]), threshold=0.1)(z, GT, curve)
    torch.testing.assert_close(loss, binary_cross_entropy(log_odds(z, curve), GT))


def test_weights_of_v2():
    """g = μ gives f = 1/2; without gradients all weights are 1; g = 0 gives f(0)."""
    positive, negative = torch.tensor([0.8, 0.0, 0.0, 9.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    q, r = equalization_weights(positive, negative)
    f0 = 1 / (1 + math.exp(12 * 0.8))
    torch.testing.assert_close(r, torch.tensor([0.5, 1.0, f0, 1.0]))
    torch.testing.assert_close(q, torch.tensor([3.0, 1.0, 5 - 4 * f0, 1.0]))


def test_loss_of_v2():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    q, r = torch.tensor([2.0, 1.5, 3.0]).double(), torch.tensor([0.1, 0.5, 1.0]).double()
    targets = F.one_hot(GT, 4)[:, :3].double()
    weights = q * targets + r * (1 - targets)
    expected = F.binary_cross_entropy_with_logits(x, targets, weights, reduction="sum") / 6
    torch.testing.assert_close(equalization_loss_v2(x, GT, q, r), expected)
    assert torch.autograd.gradcheck(lambda x: equalization_loss_v2(x, GT, q, r), x)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(equalization_loss_v2(x, GT, one, one), binary_cross_entropy(x, GT))
    assert equalization_loss_v2(x[:0], GT[:0], q, r) == 0


def test_gradients_of_v2():
    """They equal autograd's of the binary cross-entropy."""
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(6 * binary_cross_entropy(x, GT), x)
    targets = F.one_hot(GT, 4)[:, :3]
    positive, negative = gradients_by_class(x.detach(), GT)
    torch.testing.assert_close(positive, (-gradient * targets).sum(dim=0))
    torch.testing.assert_close(negative, (gradient * (1 - targets)).sum(dim=0))


@pytest.mark.parametrize("curve", CURVES)
def test_v2_in_training(curve):
    """The first step is cross-entropy. The second uses the gradients of the first and adds its
    own weighted ones."""
    loss, z = EqualizationLossV2(3), torch.randn(6, 3)
    x = log_odds(z, curve)
    torch.testing.assert_close(loss(z, GT, curve), binary_cross_entropy(x, GT))
    first = torch.stack(gradients_by_class(x, GT))
    torch.testing.assert_close(loss.positive_gradients.float(), first[0])
    weights = torch.stack(equalization_weights(*first.double())).float()
    torch.testing.assert_close(loss(z, GT, curve), equalization_loss_v2(x, GT, *weights))
    sums = torch.stack([loss.positive_gradients, loss.negative_gradients])
    torch.testing.assert_close(sums.float(), first * (1 + weights))
    loss.eval()(z, GT, curve)
    loss.train()(z[:0], GT[:0], curve)
    assert torch.equal(sums, torch.stack([loss.positive_gradients, loss.negative_gradients]))


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_v2_of_any_logit(value):
    loss, z = EqualizationLossV2(3), torch.full((6, 3), value, requires_grad=True)
    for _ in range(3):
        total = loss(z, GT, SIGMOID)
    total.backward()
    assert total.isfinite() and z.grad.isfinite().all()
