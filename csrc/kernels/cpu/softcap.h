// A soft cap on logits, z = cap * tanh(input / cap), or none.
#pragma once

#include "kernels/cpu/math.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename T, bool kCapped>
struct Softcap {
  T cap, inverse;

  CHARLM_INLINE Vec<T> operator()(Vec<T> input) const {
    if constexpr (kCapped) return tanh(input * inverse) * cap;
    return input;
  }
  CHARLM_INLINE T operator()(T input) const { return (*this)(broadcast<T>(input))[0]; }
  // d z / d input, from the input.
  CHARLM_INLINE Vec<T> derivative(Vec<T> input) const {
    const Vec<T> t = tanh(input * inverse);
    return (T)1 - t * t;
  }
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
