"""Balanced softmax: optimum, limits and hand-worked priors."""

import pytest
import torch
from torch.nn import functional as F

from apa_det import logit_apa
from apa_det.modeling.losses import (
    SIGMOID,
    BalancedSoftmax,
    binary_cross_entropy,
    log_prior_ratios,
)


def test_hand_worked():
    """Shares of 1/8, 5/8 and 2/8 relative to 1/3; zero counts are treated as 1."""
    for counts in ([1, 5, 2], [0, 5, 2]):
        ratios = log_prior_ratios(torch.tensor(counts)).exp()
        torch.testing.assert_close(ratios, torch.tensor([3 / 8, 15 / 8, 6 / 8]))


def test_softmax(dataset):
    """K n_j / Σ n multiplies the odds of the classes, but not of the background."""
    z, gt_classes = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    loss = BalancedSoftmax(3, datasets=dataset([1, 5, 2]))(z, gt_classes, None)
    odds = z.double().exp() * torch.tensor([3 / 8, 15 / 8, 6 / 8, 1])
    expected = -(odds[range(4), gt_classes] / odds.sum(dim=1)).log().mean()
    torch.testing.assert_close(loss.double(), expected)


def test_optimum(dataset):
    """With labels as frequent as the counts, equal logits are optimal without features."""
    gt_classes = torch.tensor([0] * 1 + [1] * 5 + [2] * 2 + [3] * 24)
    z = torch.tensor(
        [0.0, 0.0, 0.0, (24 / 8 * 3)]
    ).log1p()  # 3 classes of odds 1, background of odds 9
    z[:3] = 0
    z[3] = torch.tensor(9.0).log()
    z.requires_grad_()
    loss = BalancedSoftmax(3, datasets=dataset([1, 5, 2]))(z.expand(32, 4), gt_classes, None)
    loss.backward()
    torch.testing.assert_close(z.grad, torch.zeros(4))


@pytest.mark.parametrize("curve", [None, SIGMOID, (0.0, 1.0), (0.5, 1.2)])
@pytest.mark.parametrize("counts,tau", [([7, 7, 7], 1.0), ([1, 5, 9], 0.0)])
def test_limits(dataset, curve, counts, tau):
    z, gt_classes = torch.randn(4, 4 if curve is None else 3), torch.tensor([0, 1, 2, 3])
    loss = BalancedSoftmax(3, datasets=dataset(counts), tau=tau)(z, gt_classes, curve)
    if curve is None:
        expected = F.cross_entropy(z, gt_classes)
    else:
        expected = binary_cross_entropy(logit_apa(z, *curve), gt_classes)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("curve", [SIGMOID, (0.0, 1.0), (0.5, 1.2)])
def test_log_odds(dataset, curve):
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    gt_classes = torch.tensor([0, 1, 2, 3])
    loss = BalancedSoftmax(3, datasets=dataset([1, 5, 2]), tau=0.5)
    shift = torch.tensor([3 / 8, 15 / 8, 6 / 8], dtype=torch.float64).log() / 2
    expected = binary_cross_entropy(logit_apa(z, *curve) + shift, gt_classes)
    torch.testing.assert_close(loss(z, gt_classes, curve), expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes, curve), z)
