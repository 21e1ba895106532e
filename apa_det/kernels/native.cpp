// APA on the CPU: each pass reads and writes each element once.
//
// The arithmetic is that of eager.py, in single precision, with functions that vectorize. setup.py
// compiles this file once per instruction set; native.py loads the build for the CPU. The file has
// no dependencies. Threads come from the OpenMP library of torch: `parallel` is its GOMP_parallel,
// so both use the same thread pool.
//
// A tensor has shape (N, C, S) with parameters per n and c. It is stored in this order ("rows",
// NCHW) or as (N, S, C) ("columns", channels-last). Elements are summed in double precision, segment
// by segment, in an order that does not depend on the number of threads.

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

// ---------------------------------------------------------------- tensors

struct bfloat16 {
  uint16_t raw;
};

INLINE float load(const float *p, int64_t i) { return p[i]; }
INLINE void store(float *p, int64_t i, float v) { p[i] = v; }
INLINE float load(const bfloat16 *p, int64_t i) { return bits<float>((uint32_t)p[i].raw << 16); }
INLINE void store(bfloat16 *p, int64_t i, float v) {
  uint32_t u = bits<uint32_t>(v);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p[i].raw = (uint16_t)(v != v ? 0x7fc0u : rounded);
}

struct PerChannel {  // element (n, c) is data[n * stride_n + c * stride_c]
  const float *data;
  int64_t stride_n, stride_c;
};

extern "C" {

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*ThreadNumber)();

struct Threads {
  Parallel parallel;  // null: one thread
  ThreadNumber thread_number, num_threads;
  int64_t count;
};

struct Tensors {  // must match _Tensors in native.py
  int64_t backward, form, is_bfloat16, columns, N, C, S;
  const void *x, *residual, *grad;
  void *out, *grad_residual;
  PerChannel scale, shift, lambda, kappa;
  double *sums;  // (N, 4, C): gradients of scale, shift, lambda and kappa
  Threads threads;
};

struct Classes {  // must match _Classes in native.py
  int64_t backward, is_bfloat16, N, K;
  const void *logits;
  const int64_t *labels;
  PerChannel lambda, kappa;
  const uint8_t *scarce;  // null: no DropLoss
  float share, clamp, grad;
  uint64_t seed;
  void *grad_logits;
  double *sums;  // forward: the loss. backward: (2, K), gradients of lambda and kappa
  Threads threads;
};
}

// The parameters of evaluate() for each (n, c) with distinct λ or κ.
class Curves {
 public:
  Curves(const PerChannel &lambda, const PerChannel &kappa, int64_t N, int64_t C)
      : stride_n(lambda.stride_n || kappa.stride_n ? C : 0),
        stride_c(lambda.stride_c || kappa.stride_c ? 1 : 0),
        curves((Parameters *)malloc(sizeof(Parameters) * (N + 1) * (C + 1))) {
    for (int64_t n = 0; n < (stride_n ? N : 1); n++)
      for (int64_t c = 0; c < (stride_c ? C : 1); c++)
        curves[n * stride_n + c * stride_c] = curve(
            lambda.data[n * lambda.stride_n + c * lambda.stride_c],
            kappa.data[n * kappa.stride_n + c * kappa.stride_c]);
  }
  ~Curves() { free(curves); }
  INLINE Parameters operator()(int64_t n, int64_t c) const {
    return curves[n * stride_n + c * stride_c];
  }

 private:
  static Parameters curve(float lambda, float kappa) {
    lambda = lambda < 0.f ? NAN : lambda < 1e-20f ? 1e-20f : lambda;
    double log = log2((double)lambda);
    float high = (float)log, low = (float)(log - high), slope = (float)(kappa * -1.4426950408889634);
    return {1.f, 0.f, slope, high, low, 1.f / lambda, kappa};
  }
  int64_t stride_n, stride_c;
  Parameters *curves;
};

INLINE Parameters parameters(const Tensors &t, const Curves &curves, int64_t n, int64_t c) {
  Parameters p = curves(n, c);
  if (t.scale.data) {
    p.scale = t.scale.data[n * t.scale.stride_n + c * t.scale.stride_c];
    p.shift = t.shift.data[n * t.shift.stride_n + c * t.shift.stride_c];
  }
  return p;
}

// ---------------------------------------------------------------- threads

template <class Work> struct Shared {
  const Work &work;
  int64_t items;
  const Threads &threads;
};

template <class Work> void run_share(void *data) {
  auto &shared = *(Shared<Work> *)data;
  int64_t i = shared.threads.thread_number(), of = shared.threads.num_threads();
  for (int64_t k = shared.items * i / of; k < shared.items * (i + 1) / of; k++) shared.work(k);
}

// Run work(0), ..., work(items - 1), in parallel if there are enough elements.
template <class Work>
void for_each(int64_t items, int64_t elements, const Threads &threads, const Work &work) {
  if (threads.parallel && threads.count > 1 && items > 1 && elements > 32768) {
    Shared<Work> shared{work, items, threads};
    threads.parallel(run_share<Work>, &shared, (unsigned)threads.count, 0);
  } else {
    for (int64_t k = 0; k < items; k++) work(k);
  }
}

INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

// ---------------------------------------------------------------- rows: (N, C, S) in memory

const int64_t SEGMENT = 1 << 15;
const int64_t BLOCK = 128;  // elements summed in single precision

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void forward_rows(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C);
  int64_t segments = (t.S + SEGMENT - 1) / SEGMENT, rows = t.N * t.C;
  for_each(rows * segments, rows * t.S, t.threads, [&](int64_t item) {
    int64_t row = item / segments, begin = item % segments * SEGMENT;
    int64_t length = minimum(SEGMENT, t.S - begin), offset = row * t.S + begin;
    const T *x = (const T *)t.x + offset, *residual = (const T *)t.residual + offset;
    T *out = (T *)t.out + offset;
    Parameters p = parameters(t, curves, row / t.C, row % t.C);
    SIMD for (int64_t i = 0; i < length; i++) {
      float u = load(x, i);
      if (AFFINE) u = u * p.scale + p.shift;
      if (RESIDUAL) u += load(residual, i);
      store(out, i, value<FORM>(u, p));
    }
  });
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void backward_rows(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C);
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
    for (int64_t start = 0; start < length; start += BLOCK) {
      int64_t stop = minimum(start + BLOCK, length);
      float scale = 0, shift = 0, lambda = 0, kappa = 0;
      SIMD_SUM(omp simd reduction(+ : scale, shift, lambda, kappa))
      for (int64_t i = start; i < stop; i++) {
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

INLINE int64_t positions_per_segment(const Tensors &t) {
  int64_t positions = SEGMENT / t.C;
  return positions < 1 ? 1 : positions;
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void forward_columns(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C);
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
        SIMD for (int64_t i = 0; i < width; i++) {
          Parameters p = tile[i];
          float u = load(x, i);
          if (AFFINE) u = u * p.scale + p.shift;
          if (RESIDUAL) u += load(residual, i);
          store(out, i, value<FORM>(u, p));
        }
      }
    }
  });
}

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void backward_columns(const Tensors &t) {
  Curves curves(t.lambda, t.kappa, t.N, t.C);
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

// ---------------------------------------------------------------- class loss

// Uniform in [0, 1): an integer hash of seed, row and column, so forward and backward draw the same.
INLINE uint32_t hash(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}
INLINE uint32_t row_key(uint64_t seed, int64_t row) {
  return hash((uint32_t)seed ^ hash((uint32_t)(seed >> 32) + hash((uint32_t)row)));
}
INLINE float draw(uint32_t key, uint32_t column) {
  return (float)(int)(hash(key + column * 0x9e3779b9u) >> 8) * 0x1p-24f;
}

// The parameters of all classes, as structure of arrays.
struct ClassParameters {
  float *slope, *high, *low, *inverse, *kappa;
  INLINE Parameters operator[](int64_t c) const {
    return {1.f, 0.f, slope[c], high[c], low[c], inverse[c], kappa[c]};
  }
};

ClassParameters class_parameters(const Classes &t) {  // the caller frees `slope`
  Curves curves(t.lambda, t.kappa, 1, t.K);
  ClassParameters all;
  all.slope = (float *)malloc(sizeof(float) * 5 * (t.K + 1));
  all.high = all.slope + t.K, all.low = all.high + t.K;
  all.inverse = all.low + t.K, all.kappa = all.inverse + t.K;
  for (int64_t c = 0; c < t.K; c++) {
    Parameters p = curves(0, c);
    all.slope[c] = p.slope, all.high[c] = p.high, all.low[c] = p.low;
    all.inverse[c] = p.inverse, all.kappa[c] = p.kappa;
  }
  return all;
}

// One proposal. Loops only vectorize with a local copy of it.
template <class T, bool DROP> struct Proposal {
  const T *logits;
  ClassParameters parameters;
  const uint8_t *scarce;
  float share, clamp, grad;
  uint32_t key;
  bool foreground;

  Proposal(const Classes &t, const ClassParameters &parameters, int64_t n)
      : logits((const T *)t.logits + n * t.K), parameters(parameters), scarce(t.scarce),
        share(t.share), clamp(t.clamp), grad(t.grad), key(row_key(t.seed, n)),
        foreground(t.labels[n] < t.K) {}

  INLINE float logit(int64_t c) const {
    float z = at_least(-clamp, load(logits, c));
    return z > clamp ? clamp : z;
  }

  INLINE float weight(int64_t c) const {
    if (!DROP) return 1.f;
    float kept = draw(key, (uint32_t)c) <= share ? 1.f : 0.f;
    kept = foreground ? 0.f : kept;
    return scarce[c] ? kept : 1.f;
  }

  INLINE float positive_loss(int64_t c) const { return evaluate(logit(c), parameters[c]).y * LOG_2; }

  INLINE float negative_loss(int64_t c) const {
    return log_complement(evaluate(logit(c), parameters[c])) * -LOG_2 * weight(c);
  }

  template <bool LABEL> INLINE Slopes gradient(int64_t c) const {
    float in = load(logits, c), z = logit(c), scale = LABEL ? grad : grad * weight(c);
    Parameters p = parameters[c];
    Point at = evaluate(z, p);
    ComplementSlopes of = {-1.f, -at.share * p.inverse};
    if (!LABEL) of = complement_slopes(at, p);
    Slopes s = slopes<false>(of.outer * scale, of.slope * scale, z, at, p);
    s.z = (in < -clamp) | (in > clamp) ? 0.f : s.z;
    return s;
  }
};

const int64_t ROWS = 32;

template <class T, bool DROP> void class_loss_forward(const Classes &t) {
  ClassParameters parameters = class_parameters(t);
  int64_t segments = (t.N + ROWS - 1) / ROWS;
  double *partial = (double *)malloc(sizeof(double) * (segments + 1));
  for_each(segments, t.N * t.K, t.threads, [&](int64_t item) {
    double total = 0;
    for (int64_t n = item * ROWS; n < minimum((item + 1) * ROWS, t.N); n++) {
      const Proposal<T, DROP> proposal(t, parameters, n);
      const int64_t K = t.K, label = t.labels[n];
      for (int64_t start = 0; start < K; start += BLOCK) {
        int64_t stop = minimum(start + BLOCK, K);
        float sum = 0;
        SIMD_SUM(omp simd reduction(+ : sum))
        for (int64_t c = start; c < stop; c++) sum += proposal.negative_loss(c);
        total += sum;
      }
      if (0 <= label && label < K)
        total += (double)proposal.positive_loss(label) - proposal.negative_loss(label);
    }
    partial[item] = total;
  });
  t.sums[0] = 0;
  for (int64_t i = 0; i < segments; i++) t.sums[0] += partial[i];
  free(partial);
  free(parameters.slope);
}

template <class T, bool DROP> void class_loss_backward(const Classes &t) {
  ClassParameters parameters = class_parameters(t);
  int64_t segments = (t.N + ROWS - 1) / ROWS;
  double *partial = (double *)calloc(2 * t.K * segments + 1, sizeof(double));
  for_each(segments, t.N * t.K, t.threads, [&](int64_t item) {
    double *by_lambda = partial + item * 2 * t.K, *by_kappa = by_lambda + t.K;
    for (int64_t n = item * ROWS; n < minimum((item + 1) * ROWS, t.N); n++) {
      const Proposal<T, DROP> proposal(t, parameters, n);
      const int64_t K = t.K, label = t.labels[n];
      T *grad_logits = (T *)t.grad_logits + n * K;
      for (int64_t start = 0; start < K; start += BLOCK) {
        int64_t width = minimum(BLOCK, K - start);
        float lambda[BLOCK], kappa[BLOCK];
        SIMD for (int64_t i = 0; i < width; i++) {
          Slopes s = proposal.template gradient<false>(start + i);
          store(grad_logits, start + i, s.z);
          lambda[i] = s.lambda, kappa[i] = s.kappa;
        }
        for (int64_t i = 0; i < width; i++) by_lambda[start + i] += lambda[i];
        for (int64_t i = 0; i < width; i++) by_kappa[start + i] += kappa[i];
      }
      if (0 <= label && label < K) {
        Slopes s = proposal.template gradient<true>(label);
        Slopes other = proposal.template gradient<false>(label);
        store(grad_logits, label, s.z);
        by_lambda[label] += (double)s.lambda - other.lambda;
        by_kappa[label] += (double)s.kappa - other.kappa;
      }
    }
  });
  memset(t.sums, 0, sizeof(double) * 2 * t.K);
  for (int64_t k = 0; k < segments; k++)
    for (int64_t i = 0; i < 2 * t.K; i++) t.sums[i] += partial[k * 2 * t.K + i];
  free(partial);
  free(parameters.slope);
}

// ---------------------------------------------------------------- dispatch

template <class T, Form FORM, bool AFFINE, bool RESIDUAL>
void run(const Tensors &t) {
  if (t.backward)
    t.columns ? backward_columns<T, FORM, AFFINE, RESIDUAL>(t)
              : backward_rows<T, FORM, AFFINE, RESIDUAL>(t);
  else
    t.columns ? forward_columns<T, FORM, AFFINE, RESIDUAL>(t)
              : forward_rows<T, FORM, AFFINE, RESIDUAL>(t);
}

template <class T> void run_form(const Tensors &t) {
  if (t.scale.data)
    t.residual ? run<T, AGLU, true, true>(t) : run<T, AGLU, true, false>(t);
  else if (t.form == APA)
    run<T, APA, false, false>(t);
  else if (t.form == LOG_APA)
    run<T, LOG_APA, false, false>(t);
  else if (t.form == LOGIT_APA)
    run<T, LOGIT_APA, false, false>(t);
  else
    run<T, AGLU, false, false>(t);
}

template <class T, bool DROP> void run_class_loss(const Classes &t) {
  t.backward ? class_loss_backward<T, DROP>(t) : class_loss_forward<T, DROP>(t);
}

}  // namespace

extern "C" {

void apa_activation(const Tensors *t) {
  t->is_bfloat16 ? run_form<bfloat16>(*t) : run_form<float>(*t);
}

void apa_class_loss(const Classes *t) {
  if (t->is_bfloat16)
    t->scarce ? run_class_loss<bfloat16, true>(*t) : run_class_loss<bfloat16, false>(*t);
  else
    t->scarce ? run_class_loss<float, true>(*t) : run_class_loss<float, false>(*t);
}
}
