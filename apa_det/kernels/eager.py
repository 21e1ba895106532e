"""APA in plain PyTorch: the reference for every other kernel, on any device.

With t = log λ − κz the activation is log η = −softplus(t)/λ. As e^(−κz) overflows where the result
is finite, and t loses digits where λ is tiny, the code works with v = −κz clamped, e = exp(v) and
x = λe. What v has above the clamp is added to log(1 + x), which is exact to every digit; what it
has below matters to the log-odds of η alone, and is taken off them.

A large tensor is worked through in blocks, whose temporaries stay in the processor's cache.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Form = Literal["apa", "log_apa", "logit_apa", "aglu"]

LAMBDA_FLOOR = 1e-20
"""A λ below this counts as this: the Gumbel limit, to single precision, but always finite."""

_HIGHEST = 60.0
# e vanishes at the lower end, but for the log-odds, which divide by it.
_LOWEST = -1e4
_LOWEST_LOGIT = -40.0
_BLOCK = {"cpu": 1 << 17}
_BLOCK_ELSEWHERE = 1 << 24


def forward(form: Form, z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """Evaluate one form of APA elementwise.

    Args:
        form: "apa" is η, "log_apa" is log η, "logit_apa" is log η − log(1 − η),
            "aglu" is zη.
        z: a tensor of any floating dtype and shape.
        lambda_, kappa: float32 or float64, the dtype to compute in, of a shape that broadcasts to
            that of ``z``.

    Returns:
        A tensor of the shape, dtype and layout of ``z``.
    """
    out = torch.empty_like(z)
    for z, lambda_, kappa, out_block in _blocks([z, lambda_, kappa, out]):  # noqa: B020
        z = z.to(lambda_.dtype)
        _, excess, y = _minus_log(form, z, lambda_, kappa)
        if form == "log_apa":
            out_block.copy_(y.neg_())
        elif form == "logit_apa":
            out_block.copy_(y.add_(_log1m_exp_minus(y)).add_(excess.clamp_(max=0)).neg_())
        else:
            eta = y.neg_().exp_()
            out_block.copy_(eta.mul_(z) if form == "aglu" else eta)
    return out


def backward(
    form: Form,
    grad: Tensor,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`forward` with respect to ``z``, ``lambda_`` and ``kappa``.

    Args:
        form, z, lambda_, kappa: as given to :func:`forward`.
        grad: the gradient with respect to its result, of the shape of ``z``.
        needs: which of the three gradients to compute; the others are None.

    Returns:
        The gradient of ``z`` in its dtype, and those of ``lambda_`` and ``kappa`` in theirs, summed
        in a fixed order over the dimensions that they were broadcast along.
    """
    grad_z = torch.empty_like(z)
    grad_lambda = torch.zeros_like(lambda_, dtype=torch.float64)
    grad_kappa = torch.zeros_like(kappa, dtype=torch.float64)
    tensors = [z, lambda_, kappa, grad, grad_z, grad_lambda, grad_kappa]
    for block in _blocks(tensors):
        z_, lambda__, kappa_, grad_, grad_z_, grad_lambda_, grad_kappa_ = block
        z_, grad_ = z_.to(lambda__.dtype), grad_.to(lambda__.dtype)
        e, _, y = _minus_log(form, z_, lambda__, kappa_)
        y.clamp_(max=1e38)
        x = e * lambda__
        s = (x / (x + 1)).div_(lambda__)
        # d log η = κs dz + zs dκ + (y − s)/λ dλ. `outer` is the derivative of the result with
        # respect to log η, and comes first in each product: it vanishes where another overflows.
        outer = _outer_gradient(form, grad_, y)
        slope = outer * s
        if needs[2]:
            term = slope * z_
            if form == "aglu":
                term.mul_(z_)
            grad_kappa_.add_(term.sum_to_size(grad_kappa_.shape))
        if needs[0]:
            slope.mul_(kappa_)
            grad_z_.copy_(slope.mul_(z_).add_(outer) if form == "aglu" else slope)
        if needs[1]:
            if form == "aglu":
                outer.mul_(z_)
            term = _lambda_gradient(outer, e, x, y, s, lambda__)
            grad_lambda_.add_(term.sum_to_size(grad_lambda_.shape))
    return (
        grad_z if needs[0] else None,
        grad_lambda.to(lambda_.dtype) if needs[1] else None,
        grad_kappa.to(kappa.dtype) if needs[2] else None,
    )


def _minus_log(
    form: Form, z: Tensor, lambda_: Tensor, kappa: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """e^(−κz) clamped, what the exponent has beyond the clamp, and y = −log η."""
    v = z * -kappa
    e = v.clamp(_LOWEST_LOGIT if form == "logit_apa" else _LOWEST, _HIGHEST)
    excess = v.sub_(e)
    e.exp_()
    y = (e * lambda_).log1p_().add_(excess.clamp(min=0)).div_(lambda_)
    return e, excess, y


def _log1m_exp_minus(y: Tensor) -> Tensor:
    """log(1 − e^(−y)) for y > 0, to full precision at both ends."""
    small = torch.expm1(-y).neg_().log_()
    large = (-y).exp_().neg_().log1p_()
    return torch.where(y < 0.7, small, large)


def _outer_gradient(form: Form, grad: Tensor, y: Tensor) -> Tensor:
    if form == "log_apa":
        return grad.clone()
    if form == "logit_apa":
        return grad / (-y).expm1_().neg_()
    return (-y).exp_().mul_(grad)


def _lambda_gradient(
    outer: Tensor, e: Tensor, x: Tensor, y: Tensor, s: Tensor, lambda_: Tensor
) -> Tensor:
    """outer · (y − s)/λ, where y − s = (log(1 + x) − x/(1 + x))/λ without cancellation.

    With w = x/(2 + x), so that log(1 + x) = 2 artanh w, the difference is the sum of positive
    terms 2w²·(1/(1 + w) + w/3 + w³/5 + …), taken for x < 1/2.
    """
    num_terms = 11 if x.dtype == torch.float64 else 5
    w = x / (x + 2)
    w2 = w * w
    series = torch.full_like(w, 1 / (2 * num_terms + 1))
    for k in range(num_terms - 1, 0, -1):
        series.mul_(w2).add_(1 / (2 * k + 1))
    series.mul_(w).add_((w + 1).reciprocal_())
    series.mul_((1 - w).square_()).mul_(e).mul_(0.5)
    direct = (y - s).mul_(outer).div_(lambda_)
    return torch.where(x < 0.5, (outer * e).mul_(series), direct)


def _blocks(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Views of the tensors, piece by piece, in the order in which the first lies in memory.

    The first tensor, z, has the full shape; a dimension that another lacks or has with size one
    is broadcast.
    """
    z = tensors[0]
    order = sorted(range(z.dim()), key=lambda d: (-z.stride(d), d))
    views = [t[(None,) * (z.dim() - t.dim())].permute(order) for t in tensors]
    yield from _split(views, 0, _BLOCK.get(z.device.type, _BLOCK_ELSEWHERE))


def _split(tensors: list[Tensor], dim: int, block: int) -> Iterator[list[Tensor]]:
    z = tensors[0]
    if z.numel() <= block or dim == z.dim():
        yield tensors
        return
    size = z.shape[dim]
    step = max(1, block * size // z.numel())
    for start in range(0, size, step):
        length = min(step, size - start)
        pieces = [t if t.shape[dim] == 1 else t.narrow(dim, start, length) for t in tensors]
        yield from _split(pieces, dim + 1, block)
