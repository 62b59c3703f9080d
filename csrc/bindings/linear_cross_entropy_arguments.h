// The arguments of linear_cross_entropy, checked: what its bindings for the CPU and for CUDA share.
#pragma once

#include "bindings/cross_entropy_options.h"

namespace charlm {

// The checked arguments, converted, and what points into them. In rows, (..., D) is (N, D).
template <typename T>
struct LinearCrossEntropyArguments {
  Tensor input, target;
  OptionalTensor bias = std::nullopt, class_weight = std::nullopt, token_weights = std::nullopt;
  Matrix input_rows = {};  // (N, D), like the weight in its own dtype
  Matrix weight = {};      // (C, D)
  CrossEntropy<T> loss = {};
  int64_t rows = 0, features = 0, classes = 0;
  // (C,); null: none
  const void* bias_values() const { return bias.has_value() ? bias->const_data_ptr() : nullptr; }
};

// Everything but the values of the targets is checked, for which see check_targets. The bias is converted to
// `bias_type`.
template <typename T>
LinearCrossEntropyArguments<T> read_linear_cross_entropy_arguments(
    const Tensor& input, const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
    const OptionalTensor& weight, const OptionalTensor& token_weights, const CrossEntropyOptions& options,
    ScalarType bias_type);

}  // namespace charlm
