// One optimizer step on a flat array of parameters.
//
//   SGD    g += weight_decay p;  m = momentum m + g;  p -= learning_rate m             as torch.optim.SGD
//   AdamW  p *= 1 - learning_rate weight_decay;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//          p -= learning_rate / (1 - beta1^k) m / (sqrt(v) / sqrt(1 - beta2^k) + eps)     as torch.optim.AdamW, step k
//
// Padding has p = g = 0 and keeps it: where AdamW's quotient is 0 / 0 (eps = 0), nothing is subtracted.
#pragma once

#include <stdint.h>

#include "kernels/isa.h"

namespace charlm {

enum class OptimizerKind : int64_t { kSgd = 0, kAdamw = 1 };

// What changes from step to step.
template <typename T>
struct Rates {
  T learning_rate = 0;
  T step_size = 0;              // learning_rate / (1 - beta1^k)
  T inverse_second_moment = 0;  // 1 / sqrt(1 - beta2^k)
};

template <typename T>
struct Update {
  OptimizerKind kind = OptimizerKind::kSgd;
  Rates<T> rates;
  T weight_decay = 0;
  T momentum = 0;  // SGD; 0: no state
  T beta1 = 0, beta2 = 0, eps = 0;
  T max_grad_norm = 0;  // 0: no clipping
  T* state1 = nullptr;  // m, in the layout of the parameters
  T* state2 = nullptr;  // v

  // A parameter whose gradient is zero does not change.
  CHARLM_SHARED_INLINE bool is_sparse() const {
    return kind == OptimizerKind::kSgd && momentum == 0 && weight_decay == 0;
  }
};

// When a step changes the parameters.
enum class UpdateTime {
  kNever,          // only the loss, or loss and gradient, are wanted
  kInPlace,        // each part of a gradient, times -learning_rate, goes straight to the parameters: plain SGD
  kAtOnce,         // each gradient is used as soon as it is complete
  kAfterClipping,  // the norm of the whole gradient has to be known first
};
// `may_be_in_place`: the step reads no parameter again whose gradient it has begun to find.
template <typename T>
CHARLM_SHARED_INLINE UpdateTime when_to_update(const Update<T>* update, bool may_be_in_place) {
  if (update == nullptr) return UpdateTime::kNever;
  if (update->max_grad_norm != 0) return UpdateTime::kAfterClipping;
  return may_be_in_place && update->is_sparse() ? UpdateTime::kInPlace : UpdateTime::kAtOnce;
}

}  // namespace charlm
