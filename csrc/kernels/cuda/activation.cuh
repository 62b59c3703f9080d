// The activations of embedding_linear and their derivatives.
#pragma once

#include "kernels/cuda/math.cuh"
#include "kernels/embedding_linear.h"

namespace charlm::cuda {

// Phi(x), the distribution function of a standard normal variable.
template <typename T>
__device__ inline T normal_cdf(T x) {
  return T(0.5) + T(0.5) * erf(x * T(0.70710678118654752440));
}

template <int kCount, typename T, typename Function>
__device__ inline void replace_all(T* values, const Function& function) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = function(values[i]);
}

// values[i] = activation(values[i]); a NaN stays one. Which activation it is is asked once for all of them.
template <int kCount, typename T>
__device__ inline void activate(Activation activation, T* values) {
  switch (activation) {
    case Activation::kTanh:
      return replace_all<kCount>(values, [](T x) { return tanh(x); });
    case Activation::kRelu:
      return replace_all<kCount>(values, [](T x) { return x < 0 ? T(0) : x; });
    case Activation::kGelu:
      return replace_all<kCount>(values, [](T x) { return x * normal_cdf(x); });
    case Activation::kSilu:
      return replace_all<kCount>(values, [](T x) { return x / (1 + exp(-x)); });
    default:
      return;
  }
}

// d activation(x) / d x from activation(x) or from x, whichever derivative_uses_output and _input name.
template <typename T>
__device__ inline T activation_slope(Activation activation, T value) {
  switch (activation) {
    case Activation::kTanh:
      return 1 - value * value;
    case Activation::kRelu:
      return value <= 0 ? T(0) : T(1);
    case Activation::kGelu:
      return normal_cdf(value) + value * exp(T(-0.5) * value * value) * T(0.39894228040143267794);  // 1 / sqrt(2 pi)
    case Activation::kSilu: {
      const T s = 1 / (1 + exp(-value));
      return s * (1 + value * (1 - s));
    }
    default:
      return 1;
  }
}

}  // namespace charlm::cuda
