// The class loss on the CPU: each pass reads and writes each logit once.

#include "native_common.h"

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace {

// Flushes subnormal results to 0 while it exists: they are slow, and Gumbel scores have many.
struct FlushSubnormals {
#ifdef __SSE__
  unsigned before = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
#else
  ~FlushSubnormals() {}
#endif
};

extern "C" {

struct Classes {  // must match _Classes in native_class_loss.py; Inputs documents the fields
  int64_t backward, is_bfloat16, N, K;
  const void *logits;
  const int64_t *labels;  // in [0, K]
  PerChannel lambda, kappa;
  const float *weights, *positive_weights, *negative_weights;  // null: 1
  const float *shift;                                          // null: 0
  const uint8_t *scarce;                                       // null: no DropLoss
  float share, gamma, clamp, grad;
  uint64_t seed;
  void *grad_logits;
  double *sums;  // forward: the loss. backward: (2, K), gradients of lambda and kappa
  Threads threads;
};
}

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
  float *slope, *high, *low, *inverse, *kappa, *shift, *negative_weights;

  explicit ClassParameters(const Classes &t) {  // the caller frees `slope`
    Curves curves(t.lambda, t.kappa, 1, t.K);
    float **arrays[] = {&slope, &high, &low, &inverse, &kappa, &shift, &negative_weights};
    float *memory = (float *)malloc(sizeof(float) * (7 * t.K + 1));
    for (int i = 0; i < 7; i++) *arrays[i] = memory + i * t.K;
    for (int64_t c = 0; c < t.K; c++) {
      Parameters p = curves(0, c);
      slope[c] = p.slope, high[c] = p.high, low[c] = p.low;
      inverse[c] = p.inverse, kappa[c] = p.kappa;
      shift[c] = t.shift ? t.shift[c] : 0.f;
      negative_weights[c] = t.negative_weights ? t.negative_weights[c] : 1.f;
    }
  }
  INLINE Parameters operator[](int64_t c) const {
    return {1.f, 0.f, slope[c], high[c], low[c], inverse[c], kappa[c]};
  }
};

struct Loss {
  float value, slope;  // slope: the derivative with respect to u
};

// σ(u)^γ log(1 + e^u), and its derivative if GRADIENT.
template <bool GRADIENT> INLINE Loss focal(float u, float gamma) {
  u = at_least(-1e38f, u * 1.442695f);  // finite, so that 0 * u is 0
  float a = exp2_(-fabsf(u)), log = a * log2_ratio(a);  // log2(1 + a)
  float loss = ((u > 0.f ? u : 0.f) + log) * LOG_2;
  float power = exp2_(gamma * ((u < 0.f ? u : 0.f) - log));
  if (!GRADIENT) return {power * loss, 0.f};
  float q = 1.f / (1.f + a), sigmoid = u > 0.f ? q : a * q;
  // 1 - σ falls as fast as the loss grows: the product is 0 for large u, where the loss overflows.
  float rest = u > 0.f ? a * q : q, finite = loss > 1e30f ? 1e30f : loss;
  return {power * loss, power * (sigmoid + gamma * (rest * finite))};
}

// One proposal. Loops only vectorize with a local copy of it. With SIMPLE, the shift and γ are 0,
// and the loss is -log η or -log(1 - η).
template <class T, bool DROP, bool SIMPLE> struct Proposal {
  const T *logits;
  ClassParameters parameters;
  const uint8_t *scarce;
  float share, gamma, clamp, grad, own_weight, other_weight;
  uint32_t key;
  bool foreground;

  Proposal(const Classes &t, const ClassParameters &parameters, int64_t n)
      : logits((const T *)t.logits + n * t.K), parameters(parameters), scarce(t.scarce),
        share(t.share), gamma(t.gamma), clamp(t.clamp), grad(t.grad),
        other_weight(t.weights ? t.weights[n] : 1.f), key(row_key(t.seed, n)),
        foreground(t.labels[n] < t.K) {
    bool weighted = foreground && t.positive_weights;
    own_weight = other_weight * (weighted ? t.positive_weights[t.labels[n]] : 1.f);
  }

  INLINE float logit(int64_t c) const {
    float z = at_least(-clamp, load(logits, c));
    return z > clamp ? clamp : z;
  }

  template <bool OWN> INLINE float weight(int64_t c) const {
    if (OWN) return own_weight;
    float w = other_weight * parameters.negative_weights[c];
    if (!DROP) return w;
    float kept = draw(key, (uint32_t)c) <= share ? w : 0.f;
    kept = foreground ? 0.f : kept;
    return scarce[c] ? kept : w;
  }

  template <bool OWN> INLINE float loss(int64_t c) const {
    Point at = evaluate(logit(c), parameters[c]);
    float value;
    if (SIMPLE) {
      value = OWN ? at.y * LOG_2 : log_complement(at) * -LOG_2;
    } else {
      float x = (at.y + log_complement(at)) * -LOG_2 + parameters.shift[c];
      value = focal<false>(OWN ? -x : x, gamma).value;
    }
    return value * weight<OWN>(c);
  }

  template <bool OWN> INLINE Slopes gradient(int64_t c) const {
    float in = load(logits, c), z = logit(c), scale = grad * weight<OWN>(c);
    Parameters p = parameters[c];
    Point at = evaluate(z, p);
    float share_of = at.share * p.inverse;
    ComplementSlopes of = {-1.f, -share_of};
    if (!OWN || !SIMPLE) of = complement_slopes(at, p);
    if (!SIMPLE) {
      float x = (at.y + log_complement(at)) * -LOG_2 + parameters.shift[c];
      scale *= OWN ? -focal<true>(-x, gamma).slope : focal<true>(x, gamma).slope;
      of = {1.f + of.outer, share_of + of.slope};  // d x = d log η + η / (1 - η) d log η
    }
    Slopes s = slopes<false>(of.outer * scale, of.slope * scale, z, at, p);
    s.z = (in < -clamp) | (in > clamp) ? 0.f : s.z;
    return s;
  }
};

// Rows are processed in at most 256 items: the gradients of λ and κ are summed in each.
INLINE int64_t rows_per_item(int64_t N) { return N > 32 * 256 ? (N + 255) / 256 : 32; }

// Index of the label in a block of classes; -1 if it is not there.
INLINE int index_in_block(int64_t label, int64_t start, int64_t width) {
  return label >= start && label < start + width ? (int)(label - start) : -1;
}

template <class T, bool DROP, bool SIMPLE> void class_loss_forward(const Classes &t) {
  ClassParameters parameters(t);
  int64_t rows = rows_per_item(t.N), items = (t.N + rows - 1) / rows;
  double *partial = (double *)malloc(sizeof(double) * (items + 1));
  for_each(items, t.N * t.K, t.threads, [&](int64_t item) {
    FlushSubnormals flush;
    double total = 0;
    for (int64_t n = item * rows; n < minimum((item + 1) * rows, t.N); n++) {
      const Proposal<T, DROP, SIMPLE> proposal(t, parameters, n);
      for (int64_t start = 0; start < t.K; start += BLOCK) {
        int width = (int)minimum(BLOCK, t.K - start);
        int own = index_in_block(t.labels[n], start, width);
        float losses[BLOCK], sum = 0;
        SIMD for (int i = 0; i < width; i++) losses[i] = proposal.template loss<false>(start + i);
        if (own >= 0) losses[own] = proposal.template loss<true>(start + own);
        SIMD_SUM(omp simd reduction(+ : sum))
        for (int i = 0; i < width; i++) sum += losses[i];
        total += sum;
      }
    }
    partial[item] = total;
  });
  t.sums[0] = 0;
  for (int64_t i = 0; i < items; i++) t.sums[0] += partial[i];
  free(partial);
  free(parameters.slope);
}

template <class T, bool DROP, bool SIMPLE> void class_loss_backward(const Classes &t) {
  ClassParameters parameters(t);
  int64_t rows = rows_per_item(t.N), items = (t.N + rows - 1) / rows;
  double *partial = (double *)calloc(2 * t.K * items + 1, sizeof(double));
  for_each(items, t.N * t.K, t.threads, [&](int64_t item) {
    FlushSubnormals flush;
    double *by_lambda = partial + item * 2 * t.K, *by_kappa = by_lambda + t.K;
    for (int64_t n = item * rows; n < minimum((item + 1) * rows, t.N); n++) {
      const Proposal<T, DROP, SIMPLE> proposal(t, parameters, n);
      for (int64_t start = 0; start < t.K; start += BLOCK) {
        int width = (int)minimum(BLOCK, t.K - start);
        int own = index_in_block(t.labels[n], start, width);
        T *grad_logits = (T *)t.grad_logits + n * t.K + start;
        float lambda[BLOCK], kappa[BLOCK];
        SIMD for (int i = 0; i < width; i++) {
          Slopes s = proposal.template gradient<false>(start + i);
          store(grad_logits, i, s.z);
          lambda[i] = s.lambda, kappa[i] = s.kappa;
        }
        if (own >= 0) {
          Slopes s = proposal.template gradient<true>(start + own);
          store(grad_logits, own, s.z);
          lambda[own] = s.lambda, kappa[own] = s.kappa;
        }
        for (int i = 0; i < width; i++) by_lambda[start + i] += lambda[i];
        for (int i = 0; i < width; i++) by_kappa[start + i] += kappa[i];
      }
    }
  });
  memset(t.sums, 0, sizeof(double) * 2 * t.K);
  for (int64_t k = 0; k < items; k++)
    for (int64_t i = 0; i < 2 * t.K; i++) t.sums[i] += partial[k * 2 * t.K + i];
  free(partial);
  free(parameters.slope);
}

template <class T, bool DROP, bool SIMPLE> void run_class_loss(const Classes &t) {
  t.backward ? class_loss_backward<T, DROP, SIMPLE>(t) : class_loss_forward<T, DROP, SIMPLE>(t);
}

template <class T, bool DROP> void choose_loss(const Classes &t) {
  t.shift || t.gamma != 0.f ? run_class_loss<T, DROP, false>(t) : run_class_loss<T, DROP, true>(t);
}

}  // namespace

extern "C" void apa_class_loss(const Classes *t) {
  if (t->is_bfloat16)
    t->scarce ? choose_loss<bfloat16, true>(*t) : choose_loss<bfloat16, false>(*t);
  else
    t->scarce ? choose_loss<float, true>(*t) : choose_loss<float, false>(*t);
}
