"""Compare DropLoss with a slow reimplementation and hand-worked cases; GOL at its limits."""

import math

import pytest
import torch

from apa_det import logit_apa
from apa_det.modeling.losses import drop_loss, drop_loss_weights


def fix_draws(monkeypatch, draws):
    monkeypatch.setattr(torch, "rand", lambda *size, **_: draws.clone().view(size))


def reference_weights(gt_classes, scarce, draws):
    n, k = draws.shape
    labels = [c for c in gt_classes if c < k]
    weights = [[1.0] * k for _ in range(n)]
    for i, label in enumerate(gt_classes):
        for c in range(k):
            if c == label or not scarce[c]:
                continue
            if label < k:
                weights[i][c] = 0.0
            elif labels:
                share = sum(bool(scarce[own]) for own in labels) / len(labels)
                if draws[i, c] > share:
                    weights[i][c] = 0.0
    return torch.tensor(weights)


def reference_loss(logits, gt_classes, weights, clamp):
    """−log η for the label, −log(1 − η) for others, with η = e^(−e^(−z)), in Python floats."""
    total = 0.0
    for row, label, weight in zip(logits.tolist(), gt_classes, weights.tolist(), strict=True):
        for c, (z, w) in enumerate(zip(row, weight, strict=True)):
            z = min(max(z, -clamp), clamp)
            e = math.exp(-z)
            total += w * (e if c == label else -math.log(-math.expm1(-e)))
    return total / len(gt_classes)


def test_hand_worked(monkeypatch):
    """Classes 0 and 1 of 4 are scarce, as is 1 of the 4 foreground labels: a share of 1/4."""
    gt_classes = torch.tensor([0, 2, 3, 2, 4, 4])
    draws = torch.full((6, 4), 0.9)
    draws[4] = torch.tensor([0.25, 0.26, 0.9, 0.9])  # draws equal to the share are kept
    draws[5] = torch.tensor([0.1, 0.0, 0.9, 0.9])
    fix_draws(monkeypatch, draws)
    weights = drop_loss_weights(gt_classes, torch.tensor([True, True, False, False]))
    assert weights.tolist() == [
        [1, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [1, 0, 1, 1],
        [1, 1, 1, 1],
    ]


def test_no_foreground():
    weights = drop_loss_weights(torch.full((3,), 4), torch.tensor([True] * 4))
    assert torch.equal(weights, torch.ones(3, 4))


def test_all_scarce():
    """Foreground proposals keep only their own class, background proposals all classes."""
    weights = drop_loss_weights(torch.tensor([1, 0, 3, 3]), torch.tensor([True] * 3))
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]


def test_none_scarce():
    weights = drop_loss_weights(torch.tensor([1, 3]), torch.tensor([False] * 3))
    assert torch.equal(weights, torch.ones(2, 3))


def test_draws_are_independent_and_match_the_share():
    gt_classes = torch.tensor([0] * 3 + [9] * 7 + [10] * 4000)
    scarce = torch.arange(10) < 5
    torch.manual_seed(0)
    first, second = (drop_loss_weights(gt_classes, scarce)[10:, :5] for _ in range(2))
    assert first.mean().item() == pytest.approx(0.3, abs=0.01)
    assert (first != second).float().mean().item() == pytest.approx(2 * 0.3 * 0.7, abs=0.01)
    per_proposal = first.mean(dim=1)
    assert 0 < per_proposal.std() < 0.25  # 0.46 if all classes of a proposal shared a draw


@pytest.mark.parametrize("seed", range(5))
def test_against_reference(monkeypatch, seed):
    generator = torch.Generator().manual_seed(seed)
    n, k, clamp = 40, 12, 10.0
    gt_classes = torch.randint(k + 1, (n,), generator=generator)
    gt_classes[n // 2 :] = k
    scarce = torch.rand(k, generator=generator) < 0.6
    draws = torch.rand(n, k, generator=generator)
    logits = torch.randn(n, k, generator=generator) * 8
    logits[0, :3] = torch.tensor([-30.0, 30.0, 10.0])
    fix_draws(monkeypatch, draws)
    log_odds = logit_apa(logits.clamp(-clamp, clamp), 0.0, 1.0)
    weights = reference_weights(gt_classes.tolist(), scarce, draws)
    assert torch.equal(drop_loss_weights(gt_classes, scarce), weights)
    expected = reference_loss(logits, gt_classes.tolist(), weights, clamp)
    assert drop_loss(log_odds, gt_classes, scarce).item() == pytest.approx(expected, rel=1e-5)


def test_gumbel_is_the_limit_of_apa():
    """Loss and gradient of APA converge to those of Gumbel scores as λ → 0."""
    z = torch.linspace(-3, 8, 50, dtype=torch.float64)[:, None].requires_grad_()
    gt_classes, scarce = torch.arange(50) % 2, torch.tensor([False])
    results = []
    for lambda_ in (1e-2, 1e-4, 1e-6, 0.0):
        loss = drop_loss(logit_apa(z, lambda_, 1.0), gt_classes, scarce)
        results.append((loss, *torch.autograd.grad(loss, z)))
    for value, limit in zip(results[2], results[3], strict=True):
        torch.testing.assert_close(value, limit, rtol=1e-4, atol=1e-9)
    errors = [(loss - results[3][0]).abs().item() for loss, _ in results[:3]]
    assert errors[0] > 50 * errors[1] > 50**2 * errors[2] > 0


@pytest.mark.parametrize("lambda_", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_any_logit(lambda_, value):
    """Loss and gradients are finite without a clamp."""
    z = torch.full((6, 4), value, requires_grad=True)
    gt_classes = torch.tensor([0, 1, 4, 4, 2, 3])
    scarce = torch.tensor([True, False, True, False])
    loss = drop_loss(logit_apa(z, lambda_, 1.0), gt_classes, scarce)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()
