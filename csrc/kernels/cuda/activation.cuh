// The activations of embedding_linear and their derivatives.
#pragma once

#include "kernels/cuda/storage.cuh"
#include "kernels/embedding_linear.h"

namespace charlm::cuda {

// Phi(x), the distribution function of a standard normal variable.
template <typename T>
__device__ inline T normal_cdf(T x) {
  return T(0.5) + T(0.5) * erf(x * T(0.70710678118654752440));
}

// Calls use(function) with the activation, of which a NaN is one again, for results that are kept as an S: which it is
// is asked once for all values.
template <typename S, typename Use>
__device__ inline void with_activation(Activation activation, const Use& use) {
  using T = Compute<S>;
  switch (activation) {
    case Activation::kTanh:
      return use([](T x) { return fast_tanh<S>(x); });
    case Activation::kRelu:
      return use([](T x) { return x < 0 ? T(0) : x; });
    case Activation::kGelu:
      return use([](T x) { return x * normal_cdf(x); });
    case Activation::kSilu:
      return use([](T x) { return x / (1 + exp(-x)); });
    default:
      return use([](T x) { return x; });
  }
}

// The same with d activation(x) / d x, a function of activation(x) or of x, whichever derivative_uses_output and _input
// name.
template <typename T, typename Use>
__device__ inline void with_activation_slope(Activation activation, const Use& use) {
  switch (activation) {
    case Activation::kTanh:
      return use([](T y) { return 1 - y * y; });
    case Activation::kRelu:
      return use([](T y) { return y <= 0 ? T(0) : T(1); });
    case Activation::kGelu:
      return use([](T x) {
        return normal_cdf(x) + x * exp(T(-0.5) * x * x) * T(0.39894228040143267794);  // 1 / sqrt(2 pi)
      });
    case Activation::kSilu:
      return use([](T x) {
        const T s = 1 / (1 + exp(-x));
        return s * (1 + x * (1 - s));
      });
    default:
      return use([](T) { return T(1); });
  }
}

}  // namespace charlm::cuda
