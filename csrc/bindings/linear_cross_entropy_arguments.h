// The arguments of linear_cross_entropy, checked: what its bindings for the CPU and for CUDA share.
#pragma once

#include "bindings/cross_entropy.h"
#include "bindings/matrix.h"

namespace charlm {

// The checked arguments, rows flattened to (N, D).
template <typename T>
struct LinearCrossEntropyArguments {
  Tensor input;         // (N, D) in the dtype of products
  Tensor weight;        // (C, D) in its own dtype
  OptionalTensor bias;  // (C,) in the dtype of products
  Tensor target;
  OptionalTensor class_weight;
  CrossEntropy<T> loss;
  int64_t rows, features, classes;
};

// Everything but the values of the targets is checked, for which see check_targets. Input and bias are converted to
// `type`.
template <typename T>
LinearCrossEntropyArguments<T> read_linear_cross_entropy_arguments(const Tensor& input, const Tensor& linear_weight,
                                                                   const Tensor& target,
                                                                   const OptionalTensor& linear_bias,
                                                                   const OptionalTensor& weight,
                                                                   const CrossEntropyOptions& options, ScalarType type);

}  // namespace charlm
