// The arguments of linear_log_probs, checked: what its bindings for the CPU and for CUDA share.
#pragma once

#include "bindings/log_probs_arguments.h"
#include "kernels/matrix.h"

namespace charlm {

// The checked arguments, converted, and what points into them. In rows, (..., D) is (N, D).
template <typename T>
struct LinearLogProbsArguments {
  Tensor input, ids;
  OptionalTensor bias = std::nullopt;
  Matrix input_rows = {};  // (N, D), like the weight in its own dtype
  Matrix weight = {};      // (C, D)
  LogProbs<T> log_probs = {};
  // (C,); null: none
  const void* bias_values() const { return bias.has_value() ? bias->const_data_ptr() : nullptr; }
};

// Everything but the values of the ids is checked, for which see check_ids. The bias is converted to `bias_type`.
template <typename T>
LinearLogProbsArguments<T> read_linear_log_probs_arguments(const Tensor& input, const Tensor& linear_weight,
                                                           const Tensor& ids, const OptionalTensor& linear_bias,
                                                           const LogProbsOptions& options, ScalarType bias_type);

}  // namespace charlm
