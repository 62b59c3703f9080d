// What the losses for CUDA share: the upstream gradient, which stays on the device, and a mean of nothing.
#pragma once

#include <cmath>

#include "bindings/cross_entropy_options.h"
#include "bindings/cuda/device_call.h"

namespace charlm {

// The mean over rows of probabilities divides by their number as torch counts it, by elements: 0 / 0 without classes.
inline void finish_without_classes(Reduction reduction, const Tensor& target, const Tensor& loss) {
  if (reduction == Reduction::kMean && !is_integral(target.scalar_type())) torch::stable::fill_(loss, NAN);
}

// Points row_scale at it under "none", and `factor` otherwise. The result holds its memory.
template <typename T>
Tensor read_upstream(const Tensor& grad_output, const Tensor& input, Reduction reduction, CrossEntropy<T>* problem,
                     const T** factor) {
  check_same_device("grad_output", grad_output, "input", input);
  const bool per_row = reduction == Reduction::kNone;
  const int64_t expected = per_row ? problem->rows : 1;
  check_elements("grad_output", grad_output, expected);
  const Tensor upstream = contiguous_as(grad_output, compute_type(input));
  if (per_row) {
    problem->row_scale = upstream.template const_data_ptr<T>();
  } else {
    *factor = upstream.template const_data_ptr<T>();
  }
  return upstream;
}

}  // namespace charlm
