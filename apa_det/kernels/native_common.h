// Tensors, per-channel parameters and threads, shared by the kernels for the CPU.
//
// setup.py compiles the kernels once per instruction set; native.py loads the build for the CPU.
// They have no dependencies. Threads come from the OpenMP library of torch: `parallel` is its
// GOMP_parallel, so both use the same thread pool.

#pragma once

#include "native_math.h"

namespace {

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
}

// The parameters of evaluate() for each (n, c) with distinct λ or κ.
class Curves {
 public:
  // λ is clamped to at least `lambda_min`.
  Curves(
      const PerChannel &lambda, const PerChannel &kappa, int64_t N, int64_t C,
      float lambda_min = -INFINITY)
      : stride_n(lambda.stride_n || kappa.stride_n ? C : 0),
        stride_c(lambda.stride_c || kappa.stride_c ? 1 : 0),
        curves((Parameters *)malloc(sizeof(Parameters) * (N + 1) * (C + 1))) {
    for (int64_t n = 0; n < (stride_n ? N : 1); n++)
      for (int64_t c = 0; c < (stride_c ? C : 1); c++)
        curves[n * stride_n + c * stride_c] = curve(
            at_least(lambda_min, lambda.data[n * lambda.stride_n + c * lambda.stride_c]),
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

const int64_t BLOCK = 128;  // elements summed in single precision

}  // namespace
