// The arguments of cross_entropy, checked and laid out as kernels want them: what its bindings for the CPU and for CUDA
// share.
#pragma once

#include "bindings/cross_entropy_options.h"

namespace charlm {

// The checked arguments, converted, and the problem that points into them.
template <typename T>
struct CrossEntropyArguments {
  Tensor input, target;
  OptionalTensor weight, token_weights;
  std::vector<int64_t> row_shape;  // of the input, without its class dimension
  CrossEntropy<T> problem;
};

// Everything but the values of the targets is checked, for which see check_targets.
template <typename T>
CrossEntropyArguments<T> read_cross_entropy_arguments(const Tensor& input, const Tensor& target,
                                                      const OptionalTensor& weight, const OptionalTensor& token_weights,
                                                      const CrossEntropyOptions& options);

// An (N, C, d1, ...) tensor as an (N * d1 * ..., C) matrix. One stride must describe all trailing dimensions: it does
// in the arguments above and in an empty gradient.
ClassMatrix class_matrix(const Tensor& tensor);
Tensor empty_gradient(const Tensor& like);

}  // namespace charlm
