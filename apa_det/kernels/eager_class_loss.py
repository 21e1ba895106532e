"""The class loss in plain PyTorch, the reference for the other backends, on any device."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import eager


class Inputs(NamedTuple):
    """The arguments of the class loss.

    With x the log-odds of η(logit; λ, κ) plus ``shift``, and u = −x for the class of the proposal
    and x for the others, the loss is the sum of w σ(u)^γ log(1 + e^u) over proposals and classes.
    The weight w is ``weights`` of the proposal, times ``positive_weights`` (own class) or
    ``negative_weights`` (others) of the class; DropLoss makes some of them 0.
    """

    logits: Tensor
    """Any floating dtype, shape (N, K)."""
    gt_classes: Tensor
    """int64, shape (N,), in [0, K]; K is the background."""
    lambda_: Tensor
    """float32 or float64, the computation dtype; one element, or shape (K,) or (1, K)."""
    kappa: Tensor
    """As ``lambda_``."""
    weights: Tensor | None = None
    """Computation dtype, shape (N,). None: 1."""
    shift: Tensor | None = None
    """Computation dtype, shape (K,). None: 0."""
    positive_weights: Tensor | None = None
    """Computation dtype, shape (K,). None: 1."""
    negative_weights: Tensor | None = None
    """Computation dtype, shape (K,). None: 1."""
    scarce: Tensor | None = None
    """bool mask, shape (K,), the classes that DropLoss protects. None: no DropLoss."""
    share: Tensor | None = None
    """float32 scalar: probability of keeping a background proposal's loss on a scarce class."""
    seed: Tensor | None = None
    """int64 scalar on the CPU: seed of the random draws."""
    gamma: float = 0.0
    """γ of the focal loss."""
    clamp: float = 0.0
    """Clamp logits to [-clamp, clamp]; clamped logits get no gradient. 0: no clamp."""


def class_loss_forward(inputs: Inputs) -> Tensor:
    """Compute the class loss: a scalar in the computation dtype."""
    log_odds, sign, weights = _terms(inputs, _clamped_logits(inputs))
    u = log_odds.mul_(sign)
    loss = -F.logsigmoid(-u)
    if inputs.gamma:
        loss *= F.logsigmoid(u).mul_(inputs.gamma).exp_()
    return (loss if weights is None else loss.mul_(weights)).sum()


def class_loss_backward(grad: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`class_loss_forward` with respect to logits, λ and κ."""
    z = _clamped_logits(inputs)
    log_odds, sign, weights = _terms(inputs, z)
    u = log_odds.mul_(sign)
    slope = u.sigmoid()
    if inputs.gamma:
        power = F.logsigmoid(u).mul_(inputs.gamma).exp_()
        slope -= (1 - slope).mul_(inputs.gamma).mul_(F.logsigmoid(-u))
        slope *= power
    slope.mul_(sign).mul_(grad)
    if weights is not None:
        slope *= weights
    grad_z, grad_lambda, grad_kappa = eager.backward(
        "logit_apa", slope, z, inputs.lambda_, inputs.kappa
    )
    if inputs.clamp:
        grad_z.masked_fill_(inputs.logits.abs() > inputs.clamp, 0)
    return grad_z.to(inputs.logits.dtype), grad_lambda, grad_kappa


def _clamped_logits(inputs: Inputs) -> Tensor:
    """Return the clamped logits in the computation dtype."""
    z = inputs.logits.to(inputs.lambda_.dtype)
    return z.clamp(-inputs.clamp, inputs.clamp) if inputs.clamp else z


def _terms(inputs: Inputs, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return x, the sign of u / x, and the weights (None: all are 1), each of shape (N, K)."""
    n, k = z.shape
    gt_classes = inputs.gt_classes
    is_label = gt_classes[:, None] == torch.arange(k, device=z.device)
    log_odds = eager.forward("logit_apa", z, inputs.lambda_, inputs.kappa)
    if inputs.shift is not None:
        log_odds += inputs.shift
    one, weights = z.new_ones(()), None
    if inputs.positive_weights is not None or inputs.negative_weights is not None:
        positive, negative = (
            one if w is None else w for w in (inputs.positive_weights, inputs.negative_weights)
        )
        weights = torch.where(is_label, positive, negative)
    if inputs.weights is not None:
        weights = inputs.weights[:, None] * (one if weights is None else weights)
    if inputs.scarce is not None:
        generator = torch.Generator(z.device).manual_seed(int(inputs.seed))
        drawn = torch.rand(n, k, generator=generator, device=z.device) > inputs.share
        dropped = inputs.scarce & ~is_label & ((gt_classes < k)[:, None] | drawn)
        weights = (one if weights is None else weights) * ~dropped
    return log_odds, torch.where(is_label, -one, one), weights
