// The update of kernels/update.h, and the norm that gradient clipping needs.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/update.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

CHARLM_INLINE Vec<float> square_root(Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)x);
#else
  for (int lane = 0; lane < kWidth<float>; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}
CHARLM_INLINE Vec<double> square_root(Vec<double> x) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)x);
#else
  for (int lane = 0; lane < kWidth<double>; ++lane) x[lane] = __builtin_sqrt(x[lane]);
  return x;
#endif
}

template <typename T, bool kPlain>
inline void sgd(const Update<T>& u, T scale, T* parameters, const T* gradient, T* momentum, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth<T>) {
    Vec<T> p = load(parameters + i), g = load(gradient + i) * scale;
    if constexpr (!kPlain) {
      g = g + u.weight_decay * p;
      if (momentum != nullptr) {
        g = u.momentum * load(momentum + i) + g;
        store(momentum + i, g);
      }
    }
    store(parameters + i, p - u.rates.learning_rate * g);
  }
}

template <typename T>
inline void adamw(const Update<T>& u, T scale, T* parameters, const T* gradient, T* first, T* second, int64_t count) {
  const T keep = 1 - u.rates.learning_rate * u.weight_decay;
  const T rest1 = 1 - u.beta1, rest2 = 1 - u.beta2;
  for (int64_t i = 0; i < count; i += kWidth<T>) {
    const Vec<T> g = load(gradient + i) * scale;
    const Vec<T> m = load(first + i) * u.beta1 + g * rest1;
    const Vec<T> v = load(second + i) * u.beta2 + g * g * rest2;
    store(first + i, m);
    store(second + i, v);
    const Vec<T> denominator = square_root(v) * u.rates.inverse_second_moment + u.eps;
    const Vec<T> quotient = m / denominator;
    store(parameters + i, load(parameters + i) * keep - u.rates.step_size * (m == 0 ? m : quotient));
  }
}

// `count` parameters from position `first` on, both multiples of the vector width; `gradient` begins there. It is
// multiplied by `scale`.
template <typename T>
CHARLM_INLINE void apply(const Update<T>& u, T scale, T* parameters, const T* gradient, int64_t first, int64_t count) {
  T* p = parameters + first;
  if (u.kind == OptimizerKind::kAdamw) {
    adamw(u, scale, p, gradient, u.state1 + first, u.state2 + first, count);
  } else if (u.is_sparse()) {
    sgd<T, true>(u, scale, p, gradient, nullptr, count);
  } else {
    sgd<T, false>(u, scale, p, gradient, u.momentum != 0 ? u.state1 + first : nullptr, count);
  }
}

template <typename T>
inline double sum_of_squares(const T* values, int64_t count) {
  constexpr int64_t kRun = 64 * kWidth<T>;  // added up in T, runs in double
  double total = 0;
  for (int64_t i = 0; i < count; i += kRun) {
    Vec<T> sum = {};
    for (int64_t j = i; j < i + kRun && j < count; j += kWidth<T>) sum += load(values + j) * load(values + j);
    total += sum_lanes<T>(sum);
  }
  return total;
}

// What clipping multiplies a gradient of `count` values by, as torch.nn.utils.clip_grad_norm_; 1 without clipping.
template <typename T>
inline T clip_scale(const Update<T>& u, const T* gradient, int64_t count) {
  if (u.max_grad_norm == 0) return 1;
  const double ratio = (double)u.max_grad_norm / (__builtin_sqrt(sum_of_squares(gradient, count)) + 1e-6);
  return ratio < 1 ? (T)ratio : (T)1;
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
