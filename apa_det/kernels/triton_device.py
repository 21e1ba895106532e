"""Device code of APA, launched by triton_kernels.py.

Each element is read and written once. The arithmetic is that of eager.py, with logarithms to base
2. GPUs compute 2^x and 1/√x in one instruction, but have no logarithm that is accurate near 1.
Therefore log2(1 + x) is a polynomial here, which the gradient of λ also uses.

A tensor has shape (N, C, S), with parameters per n and c. Each program processes one or more tiles
of C × S along S. The fastest dimension in memory is C ("columns", channels-last) or S. Tile offsets
are int64, since tensors may have more than 2^31 elements.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NAN = tl.constexpr(float("nan"))

_LAMBDA_FLOOR = tl.constexpr(1e-20)
_HIGHEST = tl.constexpr(86.0)  # upper clamp of log2 e^(−κz); the excess is added to log2(1 + x)
_LOWEST = tl.constexpr(-58.0)  # lower clamp of log2 e^(−κz), where results divide by e^(−κz)
_FINITE = tl.constexpr(1e18)  # keeps −log η finite, so that 0 · −log η is not NaN


# -------------------------------------------------------------------- elementary functions


@triton.jit
def _log2_series(f):
    """Compute (log2(1 + f) − f · log2 e) / f² for f in [−1/4, 1/2], by a minimax polynomial."""
    p = f * -0.06664177 + 0.15279491
    p = p * f - 0.19032998
    p = p * f + 0.20872816
    p = p * f - 0.2401072
    p = p * f + 0.288409
    p = p * f - 0.3606771
    p = p * f + 0.48090005
    return p * f - 0.7213475


@triton.jit
def _power_of_2(u):
    """Return k and 2^−k such that u · 2^−k is in [3/4, 3/2)."""
    exponent = (u.to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000
    scale = (0x3F800000 - exponent).to(tl.float32, bitcast=True)
    return exponent.to(tl.float32) * (1.0 / 0x800000), scale


@triton.jit
def _one_minus_exp2(y, eta):
    """Return 1 − η, where η = 2^−y, and its rounding error."""
    n = y * _LN2
    p = n * -0.0010386467 + 0.00807781
    p = p * n - 0.041579373
    p = p * n + 0.16665344
    p = p * n - 0.49999934
    difference = 1.0 - eta
    is_small = y < 1.0
    lost = tl.where(is_small, 0.0, (1.0 - difference) - eta)
    return tl.where(is_small, p * n * n + n, difference), lost


@triton.jit
def _log2_complement(y, eta, below):
    """Compute log2(1 − η), where η = 2^−y."""
    complement, lost = _one_minus_exp2(y, eta)
    k, scale = _power_of_2(complement)
    f = (complement * scale - 1.0) + lost * scale
    return f * (f * _log2_series(f) + _LOG2E) + k + below


# -------------------------------------------------------------------- APA


@triton.jit
def above_floor(lambda_):
    """Clamp λ; NaN where it is negative or NaN, which tl.maximum does not propagate."""
    lambda_ = tl.where(lambda_ < 0, _NAN, lambda_)
    return tl.where(lambda_ < _LAMBDA_FLOOR, _LAMBDA_FLOOR, lambda_)


@triton.jit
def _load_lambda(pointer, lambda_min, n, c, C, ALONG: tl.constexpr):
    lambda_ = _parameter(pointer, n, c, C, ALONG)
    return above_floor(tl.where(lambda_ < lambda_min, lambda_min, lambda_))


@triton.jit
def _evaluate(z, lambda_, inverse, kappa, LOGIT: tl.constexpr, GRADIENT: tl.constexpr):
    """Compute the terms shared by value and gradients; ``inverse`` is 1/λ.

    Returns: e = e^(−κz) with clamped exponent; x = λe; whether x < 1/2; :func:`_log2_series` and
    log2 of 1 + x; y = −log2 η; the excess of log2 e below the lower clamp.
    """
    v = z * (kappa * -_LOG2E)
    if GRADIENT:
        v = tl.minimum(v, _FINITE, propagate_nan=tl.PropagateNan.ALL)
    clamped = tl.minimum(v, _HIGHEST, propagate_nan=tl.PropagateNan.ALL)
    below = 0.0
    if LOGIT:
        clamped = tl.maximum(clamped, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
        below = tl.minimum(v - _LOWEST, 0.0)
    e = tl.exp2(clamped)
    x = lambda_ * e
    k, scale = _power_of_2(1.0 + x)
    f = x * scale + (scale - 1.0)
    series = _log2_series(f)
    ratio = f * series + _LOG2E
    log2 = f * ratio + (k + (v - clamped))  # FMA or not only matters for large x
    is_small = scale == 1.0  # 1 + x < 3/2 after rounding
    y = tl.where(is_small, e * ratio, log2 * inverse)
    return e, x, is_small, series, log2, y, below


@triton.jit
def _value(z, lambda_, inverse, kappa, FORM: tl.constexpr):
    _, _, _, _, _, y, below = _evaluate(z, lambda_, inverse, kappa, FORM == "logit_apa", False)
    if FORM == "log_apa":
        value = y * -_LN2
    else:
        value = tl.exp2(-y)
        if FORM == "logit_apa":
            value = (y + _log2_complement(y, value, below)) * -_LN2
        if FORM == "aglu":
            value *= z
    return value


@triton.jit
def _gradients(grad, z, lambda_, inverse, kappa, FORM: tl.constexpr):
    """Compute the elementwise gradients for z, λ and κ."""
    e, x, is_small, series, log2, y, _ = _evaluate(
        z, lambda_, inverse, kappa, FORM == "logit_apa", True
    )
    outer = grad
    if FORM != "log_apa":
        eta = tl.exp2(-y)
        if FORM == "logit_apa":
            complement, lost = _one_minus_exp2(y, eta)
            outer = grad / complement
        else:
            outer = grad * eta
    return _slopes(outer, z, e, x, is_small, series, log2, inverse, kappa, FORM == "aglu")


@triton.jit
def _slopes(outer, z, e, x, is_small, series, log2, inverse, kappa, TIMES_Z: tl.constexpr):
    """Compute outer · d log η, or with TIMES_Z outer · (z d log η + dz), for z, λ and κ.

    d log η = κs dz + zs dκ + (y − s)/λ dλ, with s = e/(1 + x) and the natural y = log(1 + x)/λ.
    For x < 1/2, (y − s)/λ = e² · ((log(1 + x) − x)/x² + 1/(1 + x)). `outer` comes first in each
    product because it is 0 where other factors overflow.
    """
    u = 1.0 + x
    root = tl.rsqrt(u)
    q = root * root
    q = tl.fma(q, tl.fma(-u, q, 1.0), q)
    slope = outer * (e * q)
    by_z, by_lambda, by_kappa = slope * kappa, outer, slope * z
    if TIMES_Z:
        by_z, by_lambda, by_kappa = by_z * z + outer, by_lambda * z, by_kappa * z
    factor = tl.where(is_small, e, inverse)
    difference = tl.where(is_small, series * _LN2 + q, log2 * _LN2 - x * q)
    return by_z, (by_lambda * factor) * (factor * difference), by_kappa


# -------------------------------------------------------------------- elementwise


@triton.jit
def _parameter(pointer, n, c, C, ALONG: tl.constexpr):
    """Load a float32 parameter that varies along ALONG: "", "n", "c" or "nc"."""
    if ALONG == "":
        value = tl.load(pointer)
    elif ALONG == "n":
        value = tl.load(pointer + n)
    elif ALONG == "c":
        value = tl.load(pointer + c, c < C, other=1.0)
    else:
        value = tl.load(pointer + n * C + c, c < C, other=1.0)
    return value


@triton.jit
def _tile(n, first_s, C, S, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return the channels, start offset and relative offsets of the tile beginning at first_s.

    A tile of one channel has scalar channels, so that its parameters are loaded once.
    """
    first_c = tl.program_id(1) * BLOCK_C
    j = tl.arange(0, BLOCK_S)[None, :]
    if BLOCK_C == 1:
        i = 0
    else:
        i = tl.arange(0, BLOCK_C)[:, None]
    if COLUMNS:
        start = (n * S + first_s) * C + first_c
        offsets = j * C + i
    elif BLOCK_C == 1:
        start = (n * C + first_c) * S + first_s
        offsets = j
    else:
        start = (n * C + first_c) * S + first_s
        offsets = i * S.to(tl.int32) + j
    return first_c + i, start, offsets


@triton.jit
def _mask(c, first_s, C, S, BLOCK_S: tl.constexpr):
    left = tl.minimum(S - first_s, BLOCK_S).to(tl.int32)
    return (c < C) & (tl.arange(0, BLOCK_S)[None, :] < left)


@triton.jit
def _store_sum(pointer, values, mask, BLOCK_C: tl.constexpr):
    if BLOCK_C == 1:
        tl.store(pointer, tl.sum(values))
    else:
        tl.store(pointer, tl.sum(values, 1, keep_dims=True), mask)


@triton.jit(do_not_specialize=["S"])
def forward(
    x,
    residual,
    out,
    scale,
    shift,
    lambda_,
    kappa,
    lambda_min,
    C,
    S,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    LAMBDA: tl.constexpr,
    KAPPA: tl.constexpr,
    FORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Process one tile. S counts units of UNIT elements, so the compiler knows its divisibility."""
    S = S.to(tl.int64) * UNIT
    n = tl.program_id(2).to(tl.int64)
    first_s = tl.program_id(0).to(tl.int64) * BLOCK_S
    c, start, offsets = _tile(n, first_s, C, S, COLUMNS, BLOCK_C, BLOCK_S)
    mask = _mask(c, first_s, C, S, BLOCK_S)
    u = tl.load(x + start + offsets, mask, other=0.0).to(tl.float32)
    if scale is not None:
        u = u * _parameter(scale, n, c, C, SCALE) + _parameter(shift, n, c, C, SHIFT)
    if residual is not None:
        u += tl.load(residual + start + offsets, mask, other=0.0).to(tl.float32)
    lambda_ = _load_lambda(lambda_, lambda_min, n, c, C, LAMBDA)
    value = _value(u, lambda_, 1.0 / lambda_, _parameter(kappa, n, c, C, KAPPA), FORM)
    tl.store(out + start + offsets, value.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["S"])
def backward(
    grad,
    x,
    residual,
    grad_x,
    grad_residual,
    sums,
    scale,
    shift,
    lambda_,
    kappa,
    lambda_min,
    C,
    S,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    LAMBDA: tl.constexpr,
    KAPPA: tl.constexpr,
    FORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TILES: tl.constexpr,
):
    """Process TILES tiles along S; program p along S writes sums over its tiles to sums[:, n, p].

    ``sums`` has shape (2 or 4, N, programs along S, C): the gradients of λ, κ and, with ``scale``,
    of scale and shift. ``sums`` and ``grad_x`` are None if not needed.
    """
    S = S.to(tl.int64) * UNIT
    n = tl.program_id(2).to(tl.int64)
    first_s = tl.program_id(0).to(tl.int64) * TILES * BLOCK_S
    c, start, offsets = _tile(n, first_s, C, S, COLUMNS, BLOCK_C, BLOCK_S)
    lambda_ = _load_lambda(lambda_, lambda_min, n, c, C, LAMBDA)
    inverse = 1.0 / lambda_
    kappa = _parameter(kappa, n, c, C, KAPPA)
    if scale is not None:
        scale = _parameter(scale, n, c, C, SCALE)
        shift = _parameter(shift, n, c, C, SHIFT)
    sum_lambda = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    sum_kappa = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    sum_scale = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    sum_shift = tl.zeros((BLOCK_C, BLOCK_S), tl.float32)
    for _step in range(TILES):
        mask = _mask(c, first_s, C, S, BLOCK_S)
        here = start + offsets
        grad_ = tl.load(grad + here, mask, other=0.0).to(tl.float32)
        x_ = tl.load(x + here, mask, other=0.0).to(tl.float32)
        u = x_
        if scale is not None:
            u = u * scale + shift
        if residual is not None:
            u += tl.load(residual + here, mask, other=0.0).to(tl.float32)
        by_u, by_lambda, by_kappa = _gradients(grad_, u, lambda_, inverse, kappa, FORM)
        sum_lambda += by_lambda
        sum_kappa += by_kappa
        by_x = by_u
        if scale is not None:
            by_x *= scale
            sum_scale += by_u * x_
            sum_shift += by_u
        if grad_x is not None:
            tl.store(grad_x + here, by_x.to(grad_x.dtype.element_ty), mask)
        if residual is not None:
            tl.store(grad_residual + here, by_u.to(grad_residual.dtype.element_ty), mask)
        first_s += BLOCK_S
        start += BLOCK_S * C if COLUMNS else BLOCK_S

    if sums is not None:
        size = tl.num_programs(2).to(tl.int64) * tl.num_programs(0) * C
        sums += (n * tl.num_programs(0) + tl.program_id(0)) * C + c
        _store_sum(sums, sum_lambda, c < C, BLOCK_C)
        _store_sum(sums + size, sum_kappa, c < C, BLOCK_C)
        if scale is not None:
            _store_sum(sums + 2 * size, sum_scale, c < C, BLOCK_C)
            _store_sum(sums + 3 * size, sum_shift, c < C, BLOCK_C)


@triton.jit
def _sum_of(
    sums, out, minimum, lambda_, N, P, C, ALONG: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum sums of shape (N, P, C) to the dimensions ALONG in double precision; store float32."""
    n, first_c = tl.program_id(1), tl.program_id(0) * BLOCK_C
    rows = P.to(tl.int64)
    if ALONG == "" or ALONG == "c":
        rows *= N
    if ALONG == "" or ALONG == "n":
        rows *= C
        columns = rows * 0 + 1
    else:
        columns = rows * 0 + C
    is_mine = True
    if ALONG == "" or ALONG == "c":
        is_mine = n == 0
    if ALONG == "" or ALONG == "n":
        is_mine = is_mine & (tl.program_id(0) == 0)
    if is_mine:
        sums += n.to(tl.int64) * rows * columns
        out += n.to(tl.int64) * columns
        if ALONG == "" or ALONG == "n":
            column = tl.arange(0, BLOCK)[None, :] * 0
            row = tl.arange(0, BLOCK)[None, :].to(tl.int64)
            step: tl.constexpr = BLOCK
            total = tl.zeros((1, BLOCK), tl.float64)
        else:
            column = first_c + tl.arange(0, BLOCK_C)[None, :]
            row = tl.arange(0, BLOCK // BLOCK_C)[:, None].to(tl.int64)
            step: tl.constexpr = BLOCK // BLOCK_C
            total = tl.zeros((BLOCK // BLOCK_C, BLOCK_C), tl.float64)
        start = rows * 0
        while start < rows:
            start += step
            mask = (row < rows) & (column < columns)
            total += tl.load(sums + row * columns + column, mask, other=0.0).to(tl.float64)
            row += step
        if ALONG == "" or ALONG == "n":
            value = tl.sum(total).to(tl.float32)
            if lambda_ is not None:
                value = tl.where(tl.load(lambda_ + n) < minimum, 0.0, value)
            tl.store(out, value)
        else:
            value = tl.sum(total, 0, keep_dims=True).to(tl.float32)
            if lambda_ is not None:
                here = lambda_ + n.to(tl.int64) * columns + column
                value = tl.where(tl.load(here, column < columns, other=0.0) < minimum, 0.0, value)
            tl.store(out + column, value, column < columns)


@triton.jit(do_not_specialize=["N", "P"])
def reduce(
    sums,
    lambda_,
    lambda_min,
    grad_lambda,
    grad_kappa,
    grad_scale,
    grad_shift,
    N,
    P,
    C,
    LAMBDA: tl.constexpr,
    KAPPA: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the sums of all programs of the backward pass, of shape (2 or 4, N, P, C).

    Program (i, n, k) sums the gradient of parameter k for n and for channel block i.
    """
    k = tl.program_id(2)
    sums += k.to(tl.int64) * N * P * C
    if grad_lambda is not None:
        if k == 0:
            _sum_of(sums, grad_lambda, lambda_min, lambda_, N, P, C, LAMBDA, BLOCK_C, BLOCK)
    if grad_kappa is not None:
        if k == 1:
            _sum_of(sums, grad_kappa, lambda_min, None, N, P, C, KAPPA, BLOCK_C, BLOCK)
    if grad_scale is not None:
        if k == 2:
            _sum_of(sums, grad_scale, lambda_min, None, N, P, C, SCALE, BLOCK_C, BLOCK)
        if k == 3:
            _sum_of(sums, grad_shift, lambda_min, None, N, P, C, SHIFT, BLOCK_C, BLOCK)
