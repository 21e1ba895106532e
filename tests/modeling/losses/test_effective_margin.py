"""Effective class-margin loss: a hand-worked case, and the two-way softmax of the paper."""

import math

import pytest
import torch

from apa_det.errors import UserError
from apa_det.modeling.losses import (
    SIGMOID,
    EffectiveClassMarginLoss,
    effective_class_margin_loss,
    effective_class_margins,
)


def test_hand_worked():
    """Counts of 1 and 15 (0 counts as 1), and a background of 16 × 1.

    The first class has r = 31, the second 17 / 15, the background 1. The loss of one background
    proposal with logits 0: each output has σ(¼ log(n / n_¬)) = 1 / (1 + r^¼).
    """
    for counts in ([1, 15], [0, 15]):
        log_ratios, weights = effective_class_margins(torch.tensor(counts), 1.0)
        r = torch.tensor([31, 17 / 15, 1], dtype=torch.float64)
        torch.testing.assert_close((4 * log_ratios).exp(), 1 / r)
        torch.testing.assert_close(weights[2].item(), math.log(2))
        torch.testing.assert_close(weights[0].item(), 31 * math.log(32 / 31))
    loss = effective_class_margin_loss(
        torch.zeros(1, 3, dtype=torch.float64), torch.tensor([2]), log_ratios, weights
    )
    expected = 31 * math.log(32 / 31) * math.log(1 + 31**-0.25)
    expected += 17 / 15 * math.log(32 / 17) * math.log(1 + (15 / 17) ** 0.25)
    expected += math.log(2) * math.log(2)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_against_the_two_way_softmax(dataset):
    """−log of the softmax of (z − log a, −z − log(1 − a)), weighted per class, over proposals."""
    counts = [1, 40, 300]
    z = (3 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    gt_classes = torch.tensor([0, 3, 3, 2, 1, 3])
    n = torch.tensor(counts, dtype=torch.float64)
    n = torch.cat([n, 6.3313 * n.sum()[None]])
    others = n.sum() - n
    a = others**0.25 / (n**0.25 + others**0.25)
    r = others / n
    two_way = torch.stack([-z - (1 - a).log(), z - a.log()], dim=-1).log_softmax(dim=-1)
    is_label = torch.nn.functional.one_hot(gt_classes, 4)
    losses = -two_way.gather(-1, is_label[..., None])[..., 0]
    expected = (losses * r * ((1 + r) / r).log()).sum() / 6
    loss = EffectiveClassMarginLoss(3, datasets=dataset(counts))
    value = loss(z, gt_classes, SIGMOID)
    torch.testing.assert_close(value, expected)
    ours, theirs = (torch.autograd.grad(v, z)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs)
    assert loss(z[:0], gt_classes[:0], SIGMOID) == 0


def test_scores():
    """A class needs its own output and no background."""
    z = torch.tensor([[0.0, 2.0, 1.0], [-1.0, 9.0, -9.0]])
    scores = EffectiveClassMarginLoss(2, datasets=()).probabilities(z)
    for row, expected in zip(scores.tolist(), z.double().sigmoid().tolist(), strict=True):
        background = expected.pop()
        assert row == pytest.approx([s * (1 - background) for s in expected] + [background])


def test_errors():
    with pytest.raises(UserError, match="MARGIN_BACKGROUND_RATIO must be > 0, got 0"):
        EffectiveClassMarginLoss(2, datasets=(), background_ratio=0)
