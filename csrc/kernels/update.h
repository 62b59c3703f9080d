// One optimizer step on a flat array of parameters.
//
//   SGD    g += weight_decay p;  m = momentum m + g;  p -= learning_rate m             as torch.optim.SGD
//   AdamW  p *= 1 - learning_rate weight_decay;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//          p -= learning_rate / (1 - beta1^k) m / (sqrt(v) / sqrt(1 - beta2^k) + eps)     as torch.optim.AdamW, step k
//
// Padding has p = g = 0 and keeps it: where AdamW's quotient is 0 / 0 (eps = 0), nothing is subtracted.
#pragma once

#include <stdint.h>

namespace charlm {

enum class OptimizerKind : int64_t { kSgd = 0, kAdamw = 1 };

template <typename T>
struct Update {
  OptimizerKind kind = OptimizerKind::kSgd;
  T learning_rate = 0;
  T weight_decay = 0;
  T momentum = 0;  // SGD; 0: no state
  T beta1 = 0, beta2 = 0, eps = 0;
  T step_size = 0;              // learning_rate / (1 - beta1^k)
  T inverse_second_moment = 0;  // 1 / sqrt(1 - beta2^k)
  T max_grad_norm = 0;          // 0: no clipping
  T* state1 = nullptr;          // m, in the layout of the parameters
  T* state2 = nullptr;          // v

  // A parameter whose gradient is zero does not change.
  bool is_sparse() const { return kind == OptimizerKind::kSgd && momentum == 0 && weight_decay == 0; }
};

}  // namespace charlm
