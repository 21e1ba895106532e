"""Device code of the class loss, launched by triton_kernels.py.

Logits have shape (N, K). Each program processes a column of tiles of rows × classes. The random
draws of DropLoss depend on seed, row and class only, so forward and backward draw the same values
and nothing is saved.
"""

import triton
import triton.language as tl

from .triton_device import _LN2, _evaluate, _log2_complement, _one_minus_exp2, _slopes, above_floor


@triton.jit(do_not_specialize=["N", "seed"])
def class_loss(
    grad,
    logits,
    gt_classes,
    lambda_,
    kappa,
    scarce,
    share,
    grad_logits,
    sums,
    N,
    K,
    seed,
    clamp,
    LAMBDA: tl.constexpr,
    KAPPA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILES: tl.constexpr,
):
    """Process TILES tiles; program p along N writes sums over its rows to sums[:, p].

    ``sums`` has shape (1, programs along N, K) for the loss or, if ``grad`` is given,
    (2, programs along N, K) for the gradients of λ and κ. LAMBDA and KAPPA are 1 if the parameter
    is per class, otherwise 0.
    """
    c = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    lambda_ = above_floor(tl.load(lambda_ + c * LAMBDA, c < K, other=1.0))
    inverse = 1.0 / lambda_
    kappa = tl.load(kappa + c * KAPPA, c < K, other=1.0)
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
        is_kept = (row < N) & (c < K)
        here = row.to(tl.int64) * K + c
        logit = tl.load(logits + here, is_kept, other=0.0).to(tl.float32)
        if scarce is not None:
            is_kept &= is_label | ~is_scarce | ((label >= K) & (tl.rand(seed, here) <= share))
        z = tl.minimum(logit, clamp, propagate_nan=tl.PropagateNan.ALL)
        z = tl.maximum(z, -clamp, propagate_nan=tl.PropagateNan.ALL)
        e, x, is_small, series, log2, y, below = _evaluate(
            z, lambda_, inverse, kappa, True, grad is not None
        )
        eta = tl.exp2(-y)
        if grad is None:
            loss = tl.where(is_label, y, -_log2_complement(y, eta, below)) * _LN2
            first_sum += tl.where(is_kept, loss, 0.0)
        else:
            complement, lost = _one_minus_exp2(y, eta)
            outer = tl.where(is_label, -1.0, eta / complement) * tl.where(is_kept, grad, 0.0)
            by_z, by_lambda, by_kappa = _slopes(
                outer, z, e, x, is_small, series, log2, inverse, kappa, False
            )
            by_z = tl.where(tl.abs(logit) > clamp, 0.0, by_z)
            is_inside = (row < N) & (c < K)
            tl.store(grad_logits + here, by_z.to(grad_logits.dtype.element_ty), is_inside)
            first_sum += by_lambda
            second_sum += by_kappa
        row += BLOCK_N
    sums += tl.program_id(0).to(tl.int64) * K + c
    tl.store(sums, tl.sum(first_sum, 0, keep_dims=True), c < K)
    if grad is not None:
        sums += tl.num_programs(0).to(tl.int64) * K
        tl.store(sums, tl.sum(second_sum, 0, keep_dims=True), c < K)
