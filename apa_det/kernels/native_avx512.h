// APA and AGLU of 16 elements at once, with AVX-512: the arithmetic of native_math.h in fewer
// instructions. 2^x takes its integer part by VREDUCEPS and VSCALEFPS, 1/(1 + a) needs no division,
// and log(1 + x) and its derivative for λ share one polynomial.

#pragma once

#include <immintrin.h>

#include "native_common.h"

namespace {

typedef __m512 Vec;
const int64_t WIDTH = 16;

INLINE Vec all(float v) { return _mm512_set1_ps(v); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE __mmask16 first(int64_t n) { return (__mmask16)((1u << n) - 1u); }

INLINE Vec load(const float *p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
INLINE void store(float *p, __mmask16 mask, Vec v) { _mm512_mask_storeu_ps(p, mask, v); }
INLINE Vec load(const bfloat16 *p, __mmask16 mask) {
  __m512i raw = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
}
INLINE void store(bfloat16 *p, __mmask16 mask, Vec v) {
  __m512i u = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
  u = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  u = _mm512_srli_epi32(u, 16);
  u = _mm512_mask_mov_epi32(
      u, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(u));
}

// 2^v for v < 128; 0 for v < -126.
INLINE Vec exp2_(Vec v) {
  Vec r = _mm512_reduce_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec integer = _mm512_sub_ps(v, r);
  Vec p = fma(all(1.5453163e-4f), r, all(1.3390863e-3f));
  p = fma(p, r, all(9.618083e-3f));
  p = fma(p, r, all(5.550357e-2f));
  p = fma(p, r, all(0.2402265f));
  p = fma(p, r, all(0.6931472f));
  p = fma(p, r, all(1.f));
  return _mm512_maskz_scalef_ps(
      _mm512_cmp_ps_mask(v, all(-126.f), _CMP_NLT_UQ), p, integer);  // NaN stays NaN
}

// log2(1 + a) / a for a in [0, 1].
INLINE Vec log2_ratio(Vec a) {
  Vec p = fma(all(-0.004582082f), a, all(0.028193908f));
  p = fma(p, a, all(-0.081329934f));
  p = fma(p, a, all(0.15211233f));
  p = fma(p, a, all(-0.22029473f));
  p = fma(p, a, all(0.2836811f));
  p = fma(p, a, all(-0.35997573f));
  p = fma(p, a, all(0.48084608f));
  p = fma(p, a, all(-0.72134596f));
  return fma(p, a, all(1.442695f));
}

// ((1 + a) log(1 + a) - a) / a^2 for a in [0, 1].
INLINE Vec log_excess(Vec a) {
  Vec p = fma(all(-0.00121332038f), a, all(0.006479258f));
  p = fma(p, a, all(-0.0167888467f));
  p = fma(p, a, all(0.0306017505f));
  p = fma(p, a, all(-0.0493834134f));
  p = fma(p, a, all(0.0832624311f));
  p = fma(p, a, all(-0.166663493f));
  return fma(p, a, all(0.499999976f));
}

struct Curve16 {
  Vec slope, high, low, inverse, kappa;

  INLINE static Curve16 broadcast(const Parameters &p) {
    return {all(p.slope), all(p.high), all(p.low), all(p.inverse), all(p.kappa)};
  }
  INLINE Vec t(Vec z) const { return _mm512_add_ps(fma(z, slope, high), low); }
};

INLINE Vec exp2_minus_abs(Vec t) { return exp2_(_mm512_or_ps(t, all(-0.f))); }

template <Form FORM> INLINE Vec value(Vec z, const Curve16 &c) {
  Vec t = c.t(z), a = exp2_minus_abs(t);
  Vec log2 = fma(a, log2_ratio(a), _mm512_max_ps(t, all(0.f)));
  Vec eta = exp2_(_mm512_sub_ps(all(0.f), _mm512_mul_ps(log2, c.inverse)));
  return FORM == AGLU ? _mm512_mul_ps(eta, z) : eta;
}

struct Slopes16 {
  Vec z, lambda, kappa;
};

// As slopes() of native_math.h. With P = log_excess(a), w = a / (1 + a) and t < 0:
// log(1 + x) = w (1 + aP) and log(1 + x) - x / (1 + x) = w aP.
template <Form FORM> INLINE Slopes16 gradient(Vec grad, Vec z, const Curve16 &c) {
  Vec t = c.t(z), a = exp2_minus_abs(t), u = _mm512_add_ps(a, all(1.f));
  Vec q = _mm512_rcp14_ps(u);
  q = fma(q, _mm512_fnmadd_ps(u, q, all(1.f)), q);
  Vec w = _mm512_mul_ps(a, q), excess = _mm512_mul_ps(a, log_excess(a));
  Vec log = fma(w, excess, w);
  __mmask16 is_large = _mm512_cmp_ps_mask(t, all(0.f), _CMP_GT_OQ);
  log = _mm512_mask3_fmadd_ps(t, all(LOG_2), log, is_large);
  Vec scaled = _mm512_mul_ps(log, c.inverse);  // -log η
  scaled = _mm512_min_ps(all(1e38f), scaled);
  Vec outer = _mm512_mul_ps(exp2_(_mm512_mul_ps(scaled, all(-1.442695f))), grad);
  Vec s = _mm512_mul_ps(_mm512_mask_mov_ps(w, is_large, q), c.inverse);
  Vec slope = _mm512_mul_ps(outer, s);
  // (-log η - s) / λ
  Vec factor = _mm512_mask_sub_ps(s, is_large, scaled, s);
  Vec by_lambda = _mm512_mul_ps(outer, factor);
  Vec rest = _mm512_mul_ps(excess, c.inverse);
  by_lambda = _mm512_mul_ps(by_lambda, _mm512_mask_mov_ps(rest, is_large, c.inverse));
  Vec by_z = _mm512_mul_ps(slope, c.kappa), by_kappa = _mm512_mul_ps(slope, z);
  if (FORM == AGLU) {
    by_z = fma(by_z, z, outer);
    by_lambda = _mm512_mul_ps(by_lambda, z);
    by_kappa = _mm512_mul_ps(by_kappa, z);
  }
  return {by_z, by_lambda, by_kappa};
}

// Call work(i, mask) for i = 0, 16, 32, ...; the mask holds the elements before `length`.
template <class Work> INLINE void for_vectors(int64_t length, const Work &work) {
  int64_t i = 0;
  for (; i + WIDTH <= length; i += WIDTH) work(i, 0xffff);
  if (i < length) work(i, first(length - i));
}

}  // namespace
