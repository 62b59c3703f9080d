// Whole training steps of the bigram model: logits = weight[x], weight (V, V); loss and gradient as in kernels/mlp.h.
#pragma once

#include "kernels/mlp.h"

namespace charlm {

template <typename T>
struct BigramStep {
  Blocks classes;
  MlpBatch<T> batch;      // contexts of length 1
  T* weight = nullptr;    // (V, classes.padded()), the padding zero
  T* gradient = nullptr;  // the same; zero on entry and on return. Not used by plain SGD without clipping
  const Update<T>* update = nullptr;
  T* workspace = nullptr;  // BigramKernels::workspace values, aligned to 64 bytes
};

namespace cpu {
template <typename T>
struct BigramKernels {
  Blocks (*classes)(int64_t vocab_size);
  int64_t (*workspace)(const Blocks& classes, int64_t entries);
  // Returns the loss before the update.
  double (*step)(const BigramStep<T>& step);
};
CHARLM_DECLARE_KERNELS(BigramKernels<float>)
CHARLM_DECLARE_KERNELS(BigramKernels<double>)
}  // namespace cpu

}  // namespace charlm
