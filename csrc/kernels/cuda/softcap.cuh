// The soft cap on the inputs of a softmax. Kernels that are kPlain have none, and do not ask.
#pragma once

#include "kernels/cuda/math.cuh"

namespace charlm::cuda {

template <typename T, bool kPlain, typename Problem>
__device__ inline T logit(const Problem& p, T input) {
  if constexpr (!kPlain) {
    if (p.softcap != 0) return p.softcap * tanh(input / p.softcap);
  }
  return input;
}

// d logit / d input
template <typename T, bool kPlain, typename Problem>
__device__ inline T logit_slope(const Problem& p, T input) {
  if constexpr (!kPlain) {
    if (p.softcap != 0) {
      const T t = tanh(input / p.softcap);
      return 1 - t * t;
    }
  }
  return 1;
}

}  // namespace charlm::cuda
