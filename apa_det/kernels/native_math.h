// The arithmetic of APA: that of eager.py, in single precision, with functions that vectorize.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// Loops only vectorize if all functions they call are inlined.
#define INLINE inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(...) _Pragma(#__VA_ARGS__)

namespace {

enum Form { APA, LOG_APA, LOGIT_APA, AGLU };

template <class To, class From> INLINE To bits(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// ---------------------------------------------------------------- elementary functions

// All are to base 2: the integer part is exact, and a polynomial approximates the rest. Errors are
// about one ulp. Subnormal results are flushed to 0.

INLINE float at_least(float low, float v) { return v < low ? low : v; }  // NaN stays NaN

// 2^v for v < 128.
INLINE float exp2_(float v) {
  v = at_least(-127.f, v);
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds v to an integer in the low bits
  float shifted = v + magic, r = v - (shifted - magic);
  float p = 1.5453163e-4f;
  p = p * r + 1.3390863e-3f;
  p = p * r + 9.618083e-3f;
  p = p * r + 5.550357e-2f;
  p = p * r + 0.2402265f;
  p = p * r + 0.6931472f;
  p = p * r + 1.f;
  return p * bits<float>((bits<uint32_t>(shifted) + 127u) << 23);
}

// log2 u for normal u > 0.
INLINE float log2_(float u) {
  int i = bits<int>(u);
  int k = (i - 0x3f3504f3) >> 23;  // u = 2^k m with m in [1/sqrt 2, sqrt 2)
  float f = bits<float>(i - (int)((unsigned)k << 23)) - 1.f;
  float p = -0.10749789f;
  p = p * f + 0.18476033f;
  p = p * f - 0.19138838f;
  p = p * f + 0.20485765f;
  p = p * f - 0.23960812f;
  p = p * f + 0.28855255f;
  p = p * f - 0.36069655f;
  p = p * f + 0.48089853f;
  p = p * f - 0.72134733f;
  p = p * f + 1.442695f;
  return p * f + (float)k;
}

// log2(1 + a) / a for a in [0, 1].
INLINE float log2_ratio(float a) {
  float p = -0.004582082f;
  p = p * a + 0.028193908f;
  p = p * a - 0.081329934f;
  p = p * a + 0.15211233f;
  p = p * a - 0.22029473f;
  p = p * a + 0.2836811f;
  p = p * a - 0.35997573f;
  p = p * a + 0.48084608f;
  p = p * a - 0.72134596f;
  return p * a + 1.442695f;
}

// (1 - 2^-y) / y for y in [0, 1].
INLINE float exp2_ratio(float y) {
  float p = 1.1303843e-05f;
  p = p * y - 1.4889237e-4f;
  p = p * y + 1.3299399e-3f;
  p = p * y - 9.6169505e-3f;
  p = p * y + 5.5503912e-2f;
  p = p * y - 0.24022649f;
  return p * y + 0.6931472f;
}

// (-log(1 - t) - t) / t^2 = 1/2 + t/3 + t^2/4 + ... for t <= 1/3.
INLINE float series(float t) {
  float p = 0.44014934f;
  p = p * t - 0.09988461f;
  p = p * t + 0.21380372f;
  p = p * t + 0.15484264f;
  p = p * t + 0.20104373f;
  p = p * t + 0.24995546f;
  p = p * t + 0.33333406f;
  return p * t + 0.5f;
}

// ---------------------------------------------------------------- APA

const float LOG_2 = 0.6931472f;

struct Parameters {  // for one (n, c)
  float scale, shift;
  float slope;      // -κ log2 e
  float high, low;  // log2 λ = high + low
  float inverse;    // 1 / λ
  float kappa;
};

// With t = log2 λ - κz log2 e, so that x = λ e^-κz = 2^t, and a = 2^-|t|:
// log2(1 + x) = max(t, 0) + log2(1 + a) without overflow or cancellation.
struct Point {
  float t, v;   // v = -κz log2 e
  float a, g;   // g = log2(1 + a) / a
  float q;      // 1 / (1 + a)
  float share;  // x / (1 + x)
  float y;      // -log2 η
};

INLINE Point evaluate(float z, const Parameters &p) {
  float v = z * p.slope, t = z * p.slope + p.high + p.low;
  float a = exp2_(-fabsf(t)), g = log2_ratio(a);
  float y = ((t > 0.f ? t : 0.f) + a * g) * p.inverse;
  float q = 1.f / (1.f + a), share = t > 0.f ? q : a * q;
  return {t, v, a, g, q, share, y > 1e38f ? 1e38f : y};
}

// 1 - η; or, if y and x are small, (1 - η) / e^-κz, which stays accurate.
struct Complement {
  bool is_small;
  float value, eta, lost;  // `lost` is the rounding error of 1 - η
};

INLINE Complement complement(const Point &p) {
  float larger = p.y > p.t + 1.f ? p.y : p.t + 1.f;
  bool is_small = larger < 1.f;  // y < 1 and t < 0, in a form that vectorizes
  float eta = exp2_(-p.y), e = exp2_ratio(at_least(-1.f, p.y < 1.f ? p.y : 1.f));
  float w = p.y < 1.f ? p.y * e : 1.f - eta;
  return {is_small, is_small ? p.g * e : w, eta, p.y < 1.f ? 0.f : (1.f - w) - eta};
}

// log2(1 - η)
INLINE float log_complement(const Point &p) {
  Complement c = complement(p);
  return log2_(c.value) + (c.is_small ? p.v : c.lost / c.value * 1.442695f);
}

template <Form FORM> INLINE float value(float z, const Parameters &p) {
  Point at = evaluate(z, p);
  if (FORM == LOG_APA) return at.y * -LOG_2;
  if (FORM == LOGIT_APA) return (at.y + log_complement(at)) * -LOG_2;
  float eta = exp2_(-at.y);
  return FORM == AGLU ? eta * z : eta;
}

struct Slopes {
  float z, lambda, kappa;
};

// outer · d log η. `outer` comes first in each product because it is 0 where other factors overflow.
// With s = share / λ, d log η = κs dz + zs dκ + (-log η - s) / λ dλ, and (-log η - s) / λ equals
// s^2 series(share). `slope` is outer · s.
template <bool WITH_Z>
INLINE Slopes slopes(float outer, float slope, float z, const Point &at, const Parameters &p) {
  float s = at.share * p.inverse, small = slope * s * series(at.share);
  float large = (at.y * LOG_2 - s) * outer * p.inverse;
  float lambda = at.share < 1.f / 3.f ? small : large;
  return {
      WITH_Z ? slope * p.kappa * z + outer : slope * p.kappa,
      WITH_Z ? lambda * z : lambda,
      WITH_Z ? slope * z * z : slope * z,
  };
}

struct ComplementSlopes {
  float outer, slope;
};

// The derivative of -log(1 - η) with respect to log η (`outer`), and outer · s (`slope`).
INLINE ComplementSlopes complement_slopes(const Point &at, const Parameters &p) {
  Complement c = complement(at);
  float s = at.share * p.inverse;
  float slope = c.eta / c.value * (c.is_small ? at.q : s);
  return {slope / s, slope};  // the first is only used where share >= 1/3
}

template <Form FORM> INLINE Slopes gradient(float grad, float z, const Parameters &p) {
  Point at = evaluate(z, p);
  if (FORM == LOG_APA) return slopes<false>(grad, grad * (at.share * p.inverse), z, at, p);
  if (FORM == LOGIT_APA) {
    ComplementSlopes of = complement_slopes(at, p);
    // d logit = d log η + η / (1 - η) d log η
    return slopes<false>(
        grad * (1.f + of.outer), grad * (at.share * p.inverse + of.slope), z, at, p);
  }
  float outer = exp2_(-at.y) * grad;
  return slopes<FORM == AGLU>(outer, outer * (at.share * p.inverse), z, at, p);
}

}  // namespace
