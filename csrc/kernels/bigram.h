// Whole training steps of the bigram model: logits = weight[x], weight (V, V); loss and gradient as in
// kernels/mlp_step.h.
#pragma once

#include "kernels/batch.h"
#include "kernels/blocks.h"
#include "kernels/isa.h"
#include "kernels/update.h"

namespace charlm {

// Each row of the matrix is read before its gradient is found, and by one context only.
template <typename T>
CHARLM_SHARED_INLINE UpdateTime bigram_update_time(const Update<T>* update) {
  return when_to_update(update, true);
}

template <typename T>
struct BigramStep {
  Blocks classes;
  ContextBatch<T> batch;              // contexts of length 1
  T* weight = nullptr;                // (V, classes.padded()), the padding zero
  T* gradient = nullptr;              // the same; zero on entry and on return. Not used where the update is in place
  const Update<T>* update = nullptr;  // null: only the loss
  T* workspace = nullptr;             // BigramKernels::workspace values, aligned to 64 bytes
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
