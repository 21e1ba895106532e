"""Compare the focal loss with fvcore's and with its limit."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss

from apa_det.errors import UserError
from apa_det.modeling.losses import SIGMOID, FocalLoss, binary_cross_entropy, focal_loss, log_odds

GT = torch.tensor([0, 2, 3, 1, 3, 0])
WEIGHTS = torch.tensor([0.5, 1, 2, 3, 1, 0])


def logits(scale=3.0):
    return (torch.randn(6, 3, dtype=torch.float64) * scale).requires_grad_()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [-1, 0.25, 1])
def test_against_fvcore(gamma, alpha):
    x = logits()
    targets = F.one_hot(GT, 4)[:, :3].double()
    losses = sigmoid_focal_loss(x, targets, alpha, gamma)
    for weights in (None, WEIGHTS):
        expected = (losses * (1 if weights is None else weights[:, None])).sum() / 6
        loss = focal_loss(x, GT, gamma, alpha, weights)
        torch.testing.assert_close(loss, expected, check_dtype=False)
        torch.testing.assert_close(
            torch.autograd.grad(loss, x)[0],
            torch.autograd.grad(expected, x, retain_graph=True)[0],
            check_dtype=False,
            rtol=1e-5,
            atol=1e-6,  # fvcore computes in float32
        )


def test_zero_gamma_is_the_cross_entropy():
    x = logits()
    torch.testing.assert_close(focal_loss(x, GT, 0.0, -1), binary_cross_entropy(x, GT))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients(gamma):
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, GT, gamma, 0.25, WEIGHTS), logits())


def test_hand_worked():
    """p = 1/2: (1/2)² log 2, times 1/4 for the label and 3/4 for each of 5 negatives."""
    loss = FocalLoss(3)(torch.zeros(2, 3), torch.tensor([1, 3]), SIGMOID)
    assert loss.item() == pytest.approx((0.25 + 5 * 0.75) * 0.25 * 0.6931472 / 2)


@pytest.mark.parametrize("curve", [(0.0, 1.0), (0.5, 1.2)])
@pytest.mark.parametrize("alpha", [-1, 0.25])
def test_fused(curve, alpha):
    """The fused loss of Gumbel and APA scores is that of their log-odds."""
    x = logits()
    loss = FocalLoss(3, alpha=alpha, class_weights=[0.5, 3.0, 2.0])
    expected = focal_loss(log_odds(x, curve), GT, 2.0, alpha, torch.tensor([0.5, 2, 1, 3, 1, 0.5]))
    value = loss(x, GT, curve)
    torch.testing.assert_close(value, expected, check_dtype=False)
    ours, theirs = (torch.autograd.grad(v, x)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs, check_dtype=False)


def test_alpha_of_half_precision_logits():
    """α is not rounded to the precision of the logits."""
    x = logits().bfloat16()
    loss = FocalLoss(3, alpha=0.3)
    single, half = (loss(z.detach(), GT, (0.0, 1.0)) for z in (x.float(), x))
    torch.testing.assert_close(half, single)


@pytest.mark.parametrize("value", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_any_logit(value, gamma):
    x = torch.full((4, 3), value, requires_grad=True)
    loss = focal_loss(x, torch.tensor([0, 1, 3, 3]), gamma)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def test_class_balanced(dataset):
    """Cui et al.: each proposal has the weight of its class."""
    loss = FocalLoss(2, gamma=1.0, class_weights="inverse", datasets=dataset([1, 4]))
    x, gt = torch.randn(3, 2), torch.tensor([0, 1, 2])
    expected = focal_loss(x, gt, 1.0, 0.25, torch.tensor([1.6, 0.4, 1.0]))
    torch.testing.assert_close(loss(x, gt, SIGMOID), expected)
    with pytest.raises(UserError, match="GAMMA must be >= 0 and FOCAL_LOSS_ALPHA <= 1; got -1 and"):
        FocalLoss(2, gamma=-1)
