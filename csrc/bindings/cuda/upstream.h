// The upstream gradient of a loss, which stays on the device.
#pragma once

#include "bindings/cross_entropy.h"
#include "bindings/cuda/device_call.h"

namespace charlm {

// Points row_scale at it under "none", and `factor` otherwise. The result holds its memory.
template <typename T>
Tensor read_upstream(const Tensor& grad_output, const Tensor& input, Reduction reduction, CrossEntropy<T>* problem,
                     const T** factor) {
  check_same_device("grad_output", grad_output, "input", input);
  const bool per_row = reduction == Reduction::kNone;
  const int64_t expected = per_row ? problem->rows : 1;
  check(grad_output.numel() == expected, "grad_output must have ", expected, " elements, got shape ",
        ShapeString(grad_output));
  check_memory("grad_output", grad_output);
  const Tensor upstream = contiguous_as(grad_output, compute_type(input));
  if (per_row) {
    problem->row_scale = upstream.template const_data_ptr<T>();
  } else {
    *factor = upstream.template const_data_ptr<T>();
  }
  return upstream;
}

}  // namespace charlm
