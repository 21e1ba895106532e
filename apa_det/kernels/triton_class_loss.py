"""Device code of the class loss, launched by triton_kernels.py.

Logits have shape (N, K). Each program processes a column of tiles of rows × classes. The random
draws of DropLoss depend on seed, row and class only, so forward and backward draw the same values
and nothing is saved.
"""

import triton
import triton.language as tl

from .triton_device import (
    _LN2,
    _LOG2E,
    _evaluate,
    _log2_complement,
    _log2_series,
    _one_minus_exp2,
    _power_of_2,
    _slopes,
    above_floor,
)


@triton.jit
def _focal(x, is_label, gamma, GRADIENT: tl.constexpr):
    """Compute σ(u)^γ log(1 + e^u) of u = ∓x / log2 e, or with GRADIENT its derivative for x."""
    u = tl.where(is_label, -x, x)
    u = tl.where(u < -1e38, -1e38, u)  # finite, so that 0 · u is 0
    a = tl.exp2(-tl.abs(u))
    k, scale = _power_of_2(1.0 + a)
    f = a * scale + (scale - 1.0)
    log2 = f * (f * _log2_series(f) + _LOG2E) + k  # of 1 + a
    loss = (tl.where(u > 0, u, 0.0) + log2) * _LN2
    power = tl.exp2(gamma * (tl.where(u < 0, u, 0.0) - log2))
    if GRADIENT:
        q = 1.0 / (1.0 + a)
        sigmoid = tl.where(u > 0, q, a * q)
        rest = tl.where(u > 0, a * q, q)  # 0 where the loss overflows
        slope = power * (sigmoid + gamma * (rest * tl.where(loss > 1e30, 1e30, loss)))
        value = tl.where(is_label, -slope, slope)
    else:
        value = power * loss
    return value


@triton.jit(do_not_specialize=["N", "seed"])
def class_loss(
    grad,
    logits,
    gt_classes,
    lambda_,
    kappa,
    weights,
    shift,
    positive_weights,
    negative_weights,
    scarce,
    share,
    grad_logits,
    sums,
    N,
    K,
    seed,
    gamma,
    clamp,
    SIMPLE: tl.constexpr,
    LAMBDA: tl.constexpr,
    KAPPA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
):
    """Process TILES tiles; program p along N writes sums over its rows to sums[:, p].

    ``sums`` has shape (1, programs along N, K) for the loss or, if ``grad`` is given,
    (2, programs along N, K) for the gradients of λ and κ. With SIMPLE, ``shift`` is None, ``gamma``
    is 0, and the loss is −log η or −log(1 − η). LAMBDA and KAPPA are 1 if the parameter is per
    class, otherwise 0. The other arguments are those of eager_class_loss.Inputs.
    """
    c = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    lambda_ = above_floor(tl.load(lambda_ + c * LAMBDA, c < K, other=1.0))
    inverse = 1.0 / lambda_
    kappa = tl.load(kappa + c * KAPPA, c < K, other=1.0)
    positive = 1.0
    if positive_weights is not None:
        positive = tl.load(positive_weights + c, c < K, other=0.0)
    negative = 1.0
    if negative_weights is not None:
        negative = tl.load(negative_weights + c, c < K, other=0.0)
    if shift is not None:
        shift = tl.load(shift + c, c < K, other=0.0) * _LOG2E
    if scarce is not None:
        is_scarce = tl.load(scarce + c, c < K, other=0) != 0
        share = tl.load(share)
    if grad is not None:
        grad = tl.load(grad)
    first_sum = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    second_sum = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    row = tl.program_id(0) * TILES * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    for _step in range(TILES):
        label = tl.load(gt_classes + row, row < N, other=0).to(tl.int32)
        is_label = c == label
        is_inside = (row < N) & (c < K)
        here = row.to(tl.int64) * K + c
        logit = tl.load(logits + here, is_inside, other=0.0).to(tl.float32)
        weight = tl.where(is_inside, tl.where(is_label, positive, negative), 0.0)
        if weights is not None:
            weight *= tl.load(weights + row, row < N, other=0.0)
        if scarce is not None:
            is_kept = is_label | ~is_scarce | ((label >= K) & (tl.rand(seed, here) <= share))
            weight = tl.where(is_kept, weight, 0.0)
        z = tl.minimum(logit, clamp, propagate_nan=tl.PropagateNan.ALL)
        z = tl.maximum(z, -clamp, propagate_nan=tl.PropagateNan.ALL)
        e, x, is_small, series, log2, y, below = _evaluate(
            z, lambda_, inverse, kappa, True, grad is not None
        )
        eta = tl.exp2(-y)
        if not SIMPLE:
            log_odds = -(y + _log2_complement(y, eta, below))
            if shift is not None:
                log_odds += shift
        if grad is None:
            if SIMPLE:
                loss = tl.where(is_label, y, -_log2_complement(y, eta, below)) * _LN2
            else:
                loss = _focal(log_odds, is_label, gamma, False)
            first_sum += loss * weight
        else:
            complement, lost = _one_minus_exp2(y, eta)
            if SIMPLE:
                outer = tl.where(is_label, -1.0, eta / complement)
            else:  # d log odds = 1 / (1 − η) d log η
                outer = _focal(log_odds, is_label, gamma, True) / complement
            outer *= grad * weight
            by_z, by_lambda, by_kappa = _slopes(
                outer, z, e, x, is_small, series, log2, inverse, kappa, False
            )
            by_z = tl.where(tl.abs(logit) > clamp, 0.0, by_z)
            tl.store(grad_logits + here, by_z.to(grad_logits.dtype.element_ty), is_inside)
            first_sum += by_lambda
            second_sum += by_kappa
        row += BLOCK_N
    sums += tl.program_id(0).to(tl.int64) * K + c
    tl.store(sums, tl.sum(first_sum, 0, keep_dims=True), c < K)
    if grad is not None:
        sums += tl.num_programs(0).to(tl.int64) * K
        tl.store(sums, tl.sum(second_sum, 0, keep_dims=True), c < K)
