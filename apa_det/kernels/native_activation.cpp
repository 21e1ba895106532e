// APA on the CPU: each pass reads and writes each element once.
//
// A tensor has shape (N, C, S) with parameters per n and c. It is stored in this order ("rows",
// NCHW) or as (N, S, C) ("columns", channels-last). Elements are summed in double precision, segment
// by segment, in an order that does not depend on the number of threads.

#include "native_common.h"
#ifdef __AVX512DQ__
#include "native_avx512.h"
#endif

namespace {

extern "C" {

struct Along {  // strides along n and c, and whether the parameter has these dimensions
  int64_t stride_n, stride_c, has_n, has_c;
};

struct Layout {  // must match _Layout in native.py
  int64_t form, is_bfloat16, columns, N, C, S;
  Along scale, shift, lambda, kappa;
};

struct Arguments {  // must match _ARGUMENTS in native.py
  const void *x, *residual, *grad;
  void *out, *grad_residual;
  const float *scale, *shift, *lambda, *kappa;
  float *grad_scale, *grad_shift, *grad_lambda, *grad_kappa;  // null: not needed
  int64_t backward, threads;
  float lambda_min;
};
}

struct Tensors {
  int64_t columns, N, C, S;
  const void *x, *residual, *grad;
  void *out, *grad_residual;
  PerChannel scale, shift, lambda, kappa;
  float lambda_min;
  double *sums;  // (N, 4, C): gradients of scale, shift, lambda and kappa
  Threads threads;
};

INLINE Parameters parameters(const Tensors &t, const Curves &curves, int64_t n, int64_t c) {
  Parameters p = curves(n, c);
  if (t.scale.data) {
    p.scale = t.scale.data[n * t.scale.stride_n + c * t.scale.stride_c];
    p.shift = t.shift.data[n * t.shift.stride_n + c * t.shift.stride_c];
  }
  return p;
}

// ---------------------------------------------------------------- rows: (N, C, S) in memory

const int64_t SEGMENT = 1 << 15;

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
INLINE void forward_row(const T *x, const T *residual, T *out, int64_t length, Parameters p) {
#ifdef __AVX512DQ__
  if constexpr (FORM == APA || FORM == AGLU) {
    const Curve16 curve = Curve16::broadcast(p);
    for_vectors(length, [&](int64_t i, __mmask16 mask) {
      Vec u = load(x + i, mask);
      if (AFFINE) u = fma(u, all(p.scale), all(p.shift));
      if (RESIDUAL) u = _mm512_add_ps(u, load(residual + i, mask));
      store(out + i, mask, value<FORM>(u, curve));
    });
    return;
  }
#endif
  SIMD for (int64_t i = 0; i < length; i++) {
    float u = load(x, i);
    if (AFFINE) u = u * p.scale + p.shift;
    if (RESIDUAL) u += load(residual, i);
    store(out, i, value<FORM>(u, p));
  }
}

// Compute gradients of x and residual, and add those of scale, shift, lambda and kappa to `sum`.
template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
INLINE void backward_row(
    const T *x, const T *residual, const T *grad, T *grad_x, T *grad_residual, int64_t length,
    Parameters p, double *sum) {
#ifdef __AVX512DQ__
  if constexpr (FORM == APA || FORM == AGLU) {
    const Curve16 curve = Curve16::broadcast(p);
    Vec scale = all(0.f), shift = scale, lambda = scale, kappa = scale;
    for_vectors(length, [&](int64_t i, __mmask16 mask) {
      Vec in = load(x + i, mask), u = in;
      if (AFFINE) u = fma(u, all(p.scale), all(p.shift));
      if (RESIDUAL) u = _mm512_add_ps(u, load(residual + i, mask));
      Slopes16 s = gradient<FORM>(load(grad + i, mask), u, curve);
      store(grad_x + i, mask, AFFINE ? _mm512_mul_ps(s.z, all(p.scale)) : s.z);
      if (RESIDUAL) store(grad_residual + i, mask, s.z);
      if (AFFINE) {
        scale = fma(s.z, in, scale);
        shift = _mm512_add_ps(s.z, shift);
      }
      lambda = _mm512_add_ps(s.lambda, lambda);
      kappa = _mm512_add_ps(s.kappa, kappa);
    });
    sum[0] += _mm512_reduce_add_ps(scale), sum[1] += _mm512_reduce_add_ps(shift);
    sum[2] += _mm512_reduce_add_ps(lambda), sum[3] += _mm512_reduce_add_ps(kappa);
    return;
  }
#endif
  float scale = 0, shift = 0, lambda = 0, kappa = 0;
  SIMD_SUM(omp simd reduction(+ : scale, shift, lambda, kappa))
  for (int64_t i = 0; i < length; i++) {
    float in = load(x, i), u = in;
    if (AFFINE) u = u * p.scale + p.shift;
    if (RESIDUAL) u += load(residual, i);
    Slopes s = gradient<FORM>(load(grad, i), u, p);
    store(grad_x, i, AFFINE ? s.z * p.scale : s.z);
    if (RESIDUAL) store(grad_residual, i, s.z);
    if (AFFINE) {
      scale += s.z * in;
      shift += s.z;
    }
    lambda += s.lambda;
    kappa += s.kappa;
  }
  sum[0] += scale, sum[1] += shift, sum[2] += lambda, sum[3] += kappa;
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void forward_rows(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C, t.lambda_min);
  int64_t segments = (t.S + SEGMENT - 1) / SEGMENT, rows = t.N * t.C;
  for_each(rows * segments, rows * t.S, t.threads, [&](int64_t item) {
    int64_t row = item / segments, begin = item % segments * SEGMENT;
    int64_t length = minimum(SEGMENT, t.S - begin), offset = row * t.S + begin;
    const T *x = (const T *)t.x + offset, *residual = (const T *)t.residual + offset;
    T *out = (T *)t.out + offset;
    Parameters p = parameters(t, curves, row / t.C, row % t.C);
    forward_row<T, FORM, AFFINE, RESIDUAL>(x, residual, out, length, p);
  });
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void backward_rows(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C, t.lambda_min);
  int64_t segments = (t.S + SEGMENT - 1) / SEGMENT, rows = t.N * t.C;
  double *partial = (double *)malloc(sizeof(double) * 4 * (rows * segments + 1));
  for_each(rows * segments, rows * t.S, t.threads, [&](int64_t item) {
    int64_t row = item / segments, begin = item % segments * SEGMENT;
    int64_t length = minimum(SEGMENT, t.S - begin), offset = row * t.S + begin;
    const T *x = (const T *)t.x + offset, *residual = (const T *)t.residual + offset;
    const T *grad = (const T *)t.grad + offset;
    T *grad_x = (T *)t.out + offset, *grad_residual = (T *)t.grad_residual + offset;
    Parameters p = parameters(t, curves, row / t.C, row % t.C);
    double sum[4] = {};
    for (int64_t i = 0; i < length; i += BLOCK)
      backward_row<T, FORM, AFFINE, RESIDUAL>(
          x + i, residual + i, grad + i, grad_x + i, grad_residual + i,
          minimum(BLOCK, length - i), p, sum);
    memcpy(partial + 4 * item, sum, sizeof sum);
  });
  for (int64_t row = 0; row < rows; row++)
    for (int k = 0; k < 4; k++) {
      double sum = 0;
      for (int64_t i = 0; i < segments; i++) sum += partial[4 * (row * segments + i) + k];
      t.sums[(row / t.C * 4 + k) * t.C + row % t.C] = sum;
    }
  free(partial);
}

// ---------------------------------------------------------------- columns: (N, S, C) in memory

const int64_t TILE = 256;

struct Tile {
  float scale[TILE], shift[TILE], slope[TILE], high[TILE], low[TILE], inverse[TILE], kappa[TILE];
  Tile(const Tensors &t, const Curves &curves, int64_t n, int64_t c, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
      Parameters p = parameters(t, curves, n, c + i);
      scale[i] = p.scale, shift[i] = p.shift, slope[i] = p.slope, high[i] = p.high;
      low[i] = p.low, inverse[i] = p.inverse, kappa[i] = p.kappa;
    }
  }
  INLINE Parameters operator[](int64_t i) const {
    return {scale[i], shift[i], slope[i], high[i], low[i], inverse[i], kappa[i]};
  }
};

#ifdef __AVX512DQ__
INLINE Curve16 curve_at(const Tile &tile, int64_t i) {
  const __mmask16 whole = 0xffff;  // TILE is a multiple of WIDTH
  return {
      load(tile.slope + i, whole), load(tile.high + i, whole), load(tile.low + i, whole),
      load(tile.inverse + i, whole), load(tile.kappa + i, whole)};
}

INLINE void add_to(double *sum, Vec v) {
  __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
  __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  _mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), low));
  _mm512_storeu_pd(sum + 8, _mm512_add_pd(_mm512_loadu_pd(sum + 8), high));
}
#endif

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
INLINE void forward_position(
    const T *x, const T *residual, T *out, int64_t width, const Tile &tile) {
#ifdef __AVX512DQ__
  if constexpr (FORM == APA || FORM == AGLU) {
    for_vectors(width, [&](int64_t i, __mmask16 mask) {
      Vec u = load(x + i, mask);
      if (AFFINE) u = fma(u, load(tile.scale + i, mask), load(tile.shift + i, mask));
      if (RESIDUAL) u = _mm512_add_ps(u, load(residual + i, mask));
      store(out + i, mask, value<FORM>(u, curve_at(tile, i)));
    });
    return;
  }
#endif
  SIMD for (int64_t i = 0; i < width; i++) {
    Parameters p = tile[i];
    float u = load(x, i);
    if (AFFINE) u = u * p.scale + p.shift;
    if (RESIDUAL) u += load(residual, i);
    store(out, i, value<FORM>(u, p));
  }
}

// Compute gradients of x and residual, and add those of scale, shift, lambda and kappa to `sums`.
template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
INLINE void backward_position(
    const T *x, const T *residual, const T *grad, T *grad_x, T *grad_residual, int64_t width,
    const Tile &tile, double (*sums)[TILE]) {
#ifdef __AVX512DQ__
  if constexpr (FORM == APA || FORM == AGLU) {
    for_vectors(width, [&](int64_t i, __mmask16 mask) {
      Vec in = load(x + i, mask), u = in, scale = load(tile.scale + i, mask);
      if (AFFINE) u = fma(u, scale, load(tile.shift + i, mask));
      if (RESIDUAL) u = _mm512_add_ps(u, load(residual + i, mask));
      Slopes16 s = gradient<FORM>(load(grad + i, mask), u, curve_at(tile, i));
      store(grad_x + i, mask, AFFINE ? _mm512_mul_ps(s.z, scale) : s.z);
      if (RESIDUAL) store(grad_residual + i, mask, s.z);
      if (AFFINE) {
        add_to(sums[0] + i, _mm512_mul_ps(s.z, in));
        add_to(sums[1] + i, s.z);
      }
      add_to(sums[2] + i, s.lambda);
      add_to(sums[3] + i, s.kappa);
    });
    return;
  }
#endif
  SIMD for (int64_t i = 0; i < width; i++) {
    Parameters p = tile[i];
    float in = load(x, i), u = in;
    if (AFFINE) u = u * p.scale + p.shift;
    if (RESIDUAL) u += load(residual, i);
    Slopes s = gradient<FORM>(load(grad, i), u, p);
    store(grad_x, i, AFFINE ? s.z * p.scale : s.z);
    if (RESIDUAL) store(grad_residual, i, s.z);
    if (AFFINE) {
      sums[0][i] += s.z * in;
      sums[1][i] += s.z;
    }
    sums[2][i] += s.lambda;
    sums[3][i] += s.kappa;
  }
}

INLINE int64_t positions_per_segment(const Tensors &t) {
  int64_t positions = SEGMENT / t.C;
  return positions < 1 ? 1 : positions;
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void forward_columns(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C, t.lambda_min);
  int64_t positions = positions_per_segment(t), segments = (t.S + positions - 1) / positions;
  for_each(t.N * segments, t.N * t.C * t.S, t.threads, [&](int64_t item) {
    int64_t n = item / segments, begin = item % segments * positions;
    int64_t end = minimum(begin + positions, t.S);
    for (int64_t c = 0; c < t.C; c += TILE) {
      int64_t width = minimum(TILE, t.C - c);
      Tile tile(t, curves, n, c, width);
      for (int64_t position = begin; position < end; position++) {
        int64_t offset = (n * t.S + position) * t.C + c;
        const T *x = (const T *)t.x + offset, *residual = (const T *)t.residual + offset;
        T *out = (T *)t.out + offset;
        forward_position<T, FORM, AFFINE, RESIDUAL>(x, residual, out, width, tile);
      }
    }
  });
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void backward_columns(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C, t.lambda_min);
  int64_t positions = positions_per_segment(t), segments = (t.S + positions - 1) / positions;
  double *partial = (double *)malloc(sizeof(double) * (4 * t.C * t.N * segments + 1));
  for_each(t.N * segments, t.N * t.C * t.S, t.threads, [&](int64_t item) {
    int64_t n = item / segments, begin = item % segments * positions;
    int64_t end = minimum(begin + positions, t.S);
    for (int64_t c = 0; c < t.C; c += TILE) {
      int64_t width = minimum(TILE, t.C - c);
      Tile tile(t, curves, n, c, width);
      double sums[4][TILE] = {};
      for (int64_t position = begin; position < end; position++) {
        int64_t offset = (n * t.S + position) * t.C + c;
        const T *x = (const T *)t.x + offset, *residual = (const T *)t.residual + offset;
        const T *grad = (const T *)t.grad + offset;
        T *grad_x = (T *)t.out + offset, *grad_residual = (T *)t.grad_residual + offset;
        backward_position<T, FORM, AFFINE, RESIDUAL>(
            x, residual, grad, grad_x, grad_residual, width, tile, sums);
      }
      for (int k = 0; k < 4; k++)
        memcpy(partial + (item * 4 + k) * t.C + c, sums[k], width * sizeof(double));
    }
  });
  for (int64_t n = 0; n < t.N; n++) {
    double *sums = t.sums + n * 4 * t.C;
    memset(sums, 0, sizeof(double) * 4 * t.C);
    for (int64_t item = n * segments; item < (n + 1) * segments; item++)
      for (int64_t i = 0; i < 4 * t.C; i++) sums[i] += partial[item * 4 * t.C + i];
  }
  free(partial);
}

// ---------------------------------------------------------------- dispatch

// Sum the gradient of a parameter over the dimensions that it does not have.
void reduce(
    const Tensors &t, int k, const PerChannel &parameter, const Along &along, float minimum,
    float *out) {
  if (!out) return;
  int64_t N = along.has_n ? t.N : 1, C = along.has_c ? t.C : 1;
  for (int64_t n = 0; n < N; n++)
    for (int64_t c = 0; c < C; c++) {
      double sum = 0;
      for (int64_t i = n; i < (N > 1 ? n + 1 : t.N); i++)
        for (int64_t j = c; j < (C > 1 ? c + 1 : t.C); j++) sum += t.sums[(i * 4 + k) * t.C + j];
      bool is_clamped =
          parameter.data[n * parameter.stride_n + c * parameter.stride_c] < minimum;
      out[n * C + c] = is_clamped ? 0.f : (float)sum;
    }
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void run(Tensors &t, const Layout &l, const Arguments &a) {
  if (!a.backward) {
    t.columns ? forward_columns<T, FORM, AFFINE, RESIDUAL>(t)
              : forward_rows<T, FORM, AFFINE, RESIDUAL>(t);
    return;
  }
  t.sums = (double *)malloc(sizeof(double) * (4 * t.N * t.C + 1));
  t.columns ? backward_columns<T, FORM, AFFINE, RESIDUAL>(t)
            : backward_rows<T, FORM, AFFINE, RESIDUAL>(t);
  reduce(t, 0, t.scale, l.scale, -INFINITY, a.grad_scale);
  reduce(t, 1, t.shift, l.shift, -INFINITY, a.grad_shift);
  reduce(t, 2, t.lambda, l.lambda, t.lambda_min, a.grad_lambda);
  reduce(t, 3, t.kappa, l.kappa, -INFINITY, a.grad_kappa);
  free(t.sums);
}

template <class T> void run_form(Tensors &t, const Layout &l, const Arguments &a) {
  if (t.scale.data)
    t.residual ? run<T, AGLU, true, true>(t, l, a) : run<T, AGLU, true, false>(t, l, a);
  else if (l.form == APA)
    run<T, APA, false, false>(t, l, a);
  else if (l.form == LOG_APA)
    run<T, LOG_APA, false, false>(t, l, a);
  else if (l.form == LOGIT_APA)
    run<T, LOGIT_APA, false, false>(t, l, a);
  else
    run<T, AGLU, false, false>(t, l, a);
}

}  // namespace

extern "C" void apa_activation(const Layout *l, const Arguments *a, const Threads *threads) {
  Tensors t = {
      l->columns, l->N, l->C, l->S, a->x, a->residual, a->grad, a->out, a->grad_residual,
      {a->scale, l->scale.stride_n, l->scale.stride_c},
      {a->shift, l->shift.stride_n, l->shift.stride_c},
      {a->lambda, l->lambda.stride_n, l->lambda.stride_c},
      {a->kappa, l->kappa.stride_n, l->kappa.stride_c},
      a->lambda_min, nullptr,
      {threads->parallel, threads->thread_number, threads->num_threads, a->threads}};
  l->is_bfloat16 ? run_form<bfloat16>(t, *l, *a) : run_form<float>(t, *l, *a);
}
