// The activations of embedding_linear and their derivatives, on vectors.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/embedding_linear.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Phi(x), the distribution function of a standard normal variable.
template <typename T>
CHARLM_INLINE Vec<T> normal_cdf(Vec<T> x) {
  return erf(x * (T)0.70710678118654752440) * (T)0.5 + (T)0.5;
}

template <typename T>
CHARLM_INLINE Vec<T> sigmoid(Vec<T> x) {
  return (T)1 / (exp(-x) + (T)1);
}

// y = f(x), element by element. A NaN stays one.
template <Activation kActivation, typename T>
CHARLM_INLINE Vec<T> activate(Vec<T> x) {
  if constexpr (kActivation == Activation::kTanh) return tanh(x);
  if constexpr (kActivation == Activation::kRelu) return x < 0 ? Vec<T>{} : x;
  if constexpr (kActivation == Activation::kGelu) return x * normal_cdf<T>(x);
  if constexpr (kActivation == Activation::kSilu) return x / (exp(-x) + (T)1);
  return x;
}

// d loss / d x from d loss / d y, and from y or x, whichever derivative_uses names.
template <Activation kActivation, typename T>
CHARLM_INLINE Vec<T> activate_backward(Vec<T> gradient, Vec<T> value) {
  if constexpr (kActivation == Activation::kTanh) return gradient * ((T)1 - value * value);
  if constexpr (kActivation == Activation::kRelu) return value <= 0 ? Vec<T>{} : gradient;
  if constexpr (kActivation == Activation::kGelu) {
    const Vec<T> density = exp(value * value * (T)-0.5) * (T)0.39894228040143267794;  // 1 / sqrt(2 pi)
    return gradient * (normal_cdf<T>(value) + value * density);
  }
  if constexpr (kActivation == Activation::kSilu) {
    const Vec<T> s = sigmoid<T>(value);
    return gradient * (s * (value * ((T)1 - s) + (T)1));
  }
  return gradient;
}

// Calls function(std::integral_constant-like tag) with the activation as a compile-time constant.
template <Activation kActivation>
struct ActivationTag {
  static constexpr Activation value = kActivation;
};
template <typename Function>
CHARLM_INLINE void with_activation(Activation activation, const Function& function) {
  switch (activation) {
    case Activation::kTanh:
      return function(ActivationTag<Activation::kTanh>{});
    case Activation::kRelu:
      return function(ActivationTag<Activation::kRelu>{});
    case Activation::kGelu:
      return function(ActivationTag<Activation::kGelu>{});
    case Activation::kSilu:
      return function(ActivationTag<Activation::kSilu>{});
    case Activation::kNone:
      return function(ActivationTag<Activation::kNone>{});
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
