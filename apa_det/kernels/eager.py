"""The eager backend: APA in plain PyTorch, the reference for the other backends, on any device.

With t = log λ − κz, log η = −softplus(t)/λ. But e^(−κz) can overflow where the result is finite,
and t loses digits for tiny λ. The code therefore clamps v = −κz and works with e = exp(v) and
x = λe. The excess of v above the upper clamp is added to log(1 + x), which is exact in floating
point. The excess below the lower clamp only affects the log-odds of η, and is subtracted there.

Large tensors are processed in blocks, so that temporaries stay in the CPU cache.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Form = Literal["apa", "log_apa", "logit_apa", "aglu"]
Needs = tuple[bool, ...]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

LAMBDA_FLOOR = 1e-20
"""Lower clamp of λ: equal to the Gumbel limit in float32, but always finite."""

_HIGHEST = 60.0
# exp(_LOWEST) is 0. The log-odds divide by e and need a higher lower clamp. (TorchScript can only
# use these constants as default arguments.)
_LOWEST = -1e4
_LOWEST_LOGIT = -40.0
_BLOCK = {"cpu": 1 << 17}
_DEFAULT_BLOCK = 1 << 24


def plan(form: Form, x: Tensor, parameters: dict[str, Tensor]) -> None:
    """Return what to remember about the layout of tensors: nothing."""


def forward(
    form: Form,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: None = None,
) -> Tensor:
    """Evaluate one form of APA elementwise.

    Args:
        form: "apa" (η), "log_apa" (log η), "logit_apa" (log η − log(1 − η)) or "aglu" (zη).
        z: tensor of any floating dtype and shape.
        lambda_, kappa: float32 or float64, the computation dtype; broadcastable to the shape of
            ``z``. Negative λ gives NaN.
        lambda_min: clamp λ to at least this value; clamped λ gets no gradient.
        layout: :func:`plan` of these tensors. None: compute it.

    Returns:
        Tensor of the shape, dtype and memory layout of ``z``.
    """
    lambda_, out = lambda_.clamp(min=lambda_min), torch.empty_like(z)
    for z, lambda_, kappa, out_block in _blocks([z, lambda_, kappa, out]):  # noqa: B020
        out_block.copy_(evaluate(form, z, lambda_, kappa))
    return out


def evaluate(form: str, z: Tensor, lambda_: Tensor, kappa: Tensor) -> Tensor:
    """Evaluate :func:`forward` without blocks, in the dtype of λ; can be traced and scripted."""
    z, lambda_ = z.to(lambda_.dtype), above_floor(lambda_)
    _, excess, y = _minus_log(form, z, lambda_, kappa)
    if form == "log_apa":
        return -y
    if form == "logit_apa":
        return -(y + _log1m_exp_minus(y) + excess.clamp(max=0.0))
    eta = torch.exp(-y)
    return eta * z if form == "aglu" else eta


def backward(
    form: Form,
    grad: Tensor,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    needs: Needs = (True,) * 3,
    lambda_min: float = -math.inf,
    layout: None = None,
) -> Gradients:
    """Compute the gradients of :func:`forward` with respect to ``z``, ``lambda_`` and ``kappa``.

    Args:
        form, z, lambda_, kappa, lambda_min, layout: the arguments of :func:`forward`.
        grad: gradient with respect to the result, of the shape of ``z``.
        needs: which of the three gradients to compute; the others are None.

    Returns:
        The gradients of ``z``, ``lambda_`` and ``kappa``, each in the dtype of its input. Those of
        ``lambda_`` and ``kappa`` are summed over the broadcast dimensions in a fixed order, and
        contiguous.
    """
    grad_z = torch.empty_like(z)
    grad_lambda, grad_kappa = _zeros(lambda_), _zeros(kappa)
    clamped = lambda_.clamp(min=lambda_min)
    tensors = [z, above_floor(clamped), kappa, grad, grad_z, grad_lambda, grad_kappa]
    for block in _blocks(tensors):
        z_, lambda__, kappa_, grad_, grad_z_, grad_lambda_, grad_kappa_ = block
        block_z, block_lambda, block_kappa = _gradients(
            form, grad_.to(lambda__.dtype), z_.to(lambda__.dtype), lambda__, kappa_, needs
        )
        if block_z is not None:
            grad_z_.copy_(block_z)
        if block_lambda is not None:
            grad_lambda_.add_(block_lambda.sum_to_size(grad_lambda_.shape))
        if block_kappa is not None:
            grad_kappa_.add_(block_kappa.sum_to_size(grad_kappa_.shape))
    grad_lambda.masked_fill_(lambda_ < lambda_min, 0)
    return (
        grad_z if needs[0] else None,
        grad_lambda.to(lambda_.dtype) if needs[1] else None,
        grad_kappa.to(kappa.dtype) if needs[2] else None,
    )


def affine_aglu_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: None = None,
) -> Tensor:
    """Compute AGLU(scale · x + shift + residual), elementwise.

    Args:
        x: tensor of any floating dtype, of shape (N, C, ...).
        scale, shift, lambda_, kappa: float32 or float64, the computation dtype; broadcastable to
            the shape of ``x``.
        residual: tensor of the shape and dtype of ``x``, or None.
        lambda_min, layout: as in :func:`forward`.

    Returns:
        Tensor of the shape, dtype and memory layout of ``x``.
    """
    lambda_, out = lambda_.clamp(min=lambda_min), torch.empty_like(x)
    tensors = [x, scale, shift, lambda_, kappa, out]
    for block in _blocks(tensors if residual is None else [*tensors, residual]):
        x, scale, shift, lambda_, kappa, out_block, *rest = block
        out_block.copy_(evaluate("aglu", affine(x, scale, shift, *rest), lambda_, kappa))
    return out


def affine_aglu_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    lambda_: Tensor,
    kappa: Tensor,
    lambda_min: float = -math.inf,
    layout: None = None,
) -> list[Tensor | None]:
    """Compute the gradients of :func:`affine_aglu_forward`, in the order of its tensors.

    Those of ``x`` and ``residual`` have the memory layout of ``x``.
    """
    grad_x = torch.empty_like(x)
    grad_residual = None if residual is None else torch.empty_like(x)
    parameters = scale, shift, lambda_, kappa
    sums = [_zeros(p) for p in parameters]
    clamped = lambda_.clamp(min=lambda_min)
    tensors = [x, grad, grad_x, scale, shift, above_floor(clamped), kappa, *sums]
    for block in _blocks(tensors if residual is None else [*tensors, residual, grad_residual]):
        x_, grad_, grad_x_, scale_, shift_, lambda__, kappa_, *rest = block
        block_sums, rest = rest[:4], rest[4:]
        u = affine(x_, scale_, shift_, *rest[:1])
        grad_u, *by_curve = _gradients("aglu", grad_.to(u.dtype), u, lambda__, kappa_)
        grad_x_.copy_(grad_u * scale_)
        if rest:
            rest[1].copy_(grad_u)
        terms = grad_u * x_.to(u.dtype), grad_u, *by_curve
        for total, term in zip(block_sums, terms, strict=True):
            total.add_(term.sum_to_size(total.shape))
    sums[2].masked_fill_(lambda_ < lambda_min, 0)
    by_scale, by_shift, *by_curve = (s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))
    return [grad_x, by_scale, by_shift, grad_residual, *by_curve]


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)


def above_floor(lambda_: Tensor, floor: float = LAMBDA_FLOOR) -> Tensor:
    """Return λ clamped to at least ``floor``; NaN where λ is negative."""
    return torch.where(lambda_ < 0, float("nan"), lambda_.clamp(min=floor))


def affine(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
    """Compute scale · x + shift + residual in the dtype of ``scale``."""
    u = x.to(scale.dtype) * scale + shift
    return u if residual is None else u + residual


def _gradients(
    form: Form, grad: Tensor, z: Tensor, lambda_: Tensor, kappa: Tensor, needs: Needs = (True,) * 3
) -> Gradients:
    """Compute the elementwise gradients of one block for z, λ and κ, in the dtype of λ."""
    e, _, y = _minus_log(form, z, lambda_, kappa)
    y.clamp_(max=1e38)
    x = e * lambda_
    s = (x / (x + 1)).div_(lambda_)
    # d log η = κs dz + zs dκ + (y − s)/λ dλ. `outer` is d result / d log η. It comes first in each
    # product because it is 0 where other factors overflow.
    outer = _outer_gradient(form, grad, y)
    slope = outer * s
    grad_z = grad_lambda = grad_kappa = None
    if needs[2]:
        grad_kappa = slope * z
        if form == "aglu":
            grad_kappa.mul_(z)
    if needs[0]:
        grad_z = slope.mul_(kappa)
        if form == "aglu":
            grad_z.mul_(z).add_(outer)
    if needs[1]:
        if form == "aglu":
            outer.mul_(z)
        grad_lambda = _lambda_gradient(outer, e, x, y, s, lambda_)
    return grad_z, grad_lambda, grad_kappa


def _minus_log(
    form: str,
    z: Tensor,
    lambda_: Tensor,
    kappa: Tensor,
    lowest: float = _LOWEST,
    lowest_logit: float = _LOWEST_LOGIT,
    highest: float = _HIGHEST,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return e^(−κz) with clamped exponent, the excess of the exponent, and y = −log η."""
    v = z * -kappa
    clamped = v.clamp(lowest_logit if form == "logit_apa" else lowest, highest)
    excess = v - clamped
    e = torch.exp(clamped)
    y = (torch.log1p(e * lambda_) + excess.clamp(min=0.0)) / lambda_
    return e, excess, y


def _log1m_exp_minus(y: Tensor) -> Tensor:
    """Compute log(1 − e^(−y)) for y > 0, accurate for both small and large y."""
    small = torch.log(-torch.expm1(-y))
    large = torch.log1p(-torch.exp(-y))
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
    """Compute outer · (y − s)/λ, where y − s = (log(1 + x) − x/(1 + x))/λ, without cancellation.

    For x < 1/2 it uses a series of positive terms: with w = x/(2 + x), log(1 + x) = 2 artanh w and
    log(1 + x) − x/(1 + x) = 2w²·(1/(1 + w) + w/3 + w³/5 + …).
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
    """Yield views of matching blocks of the tensors, in the memory order of the first tensor.

    The first tensor has the full shape; the others broadcast to it.
    """
    z = tensors[0]
    order = sorted(range(z.dim()), key=lambda d: (-z.stride(d), d))
    views = [t[(None,) * (z.dim() - t.dim())].permute(order) for t in tensors]
    yield from _split(views, 0, _BLOCK.get(z.device.type, _DEFAULT_BLOCK))


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
