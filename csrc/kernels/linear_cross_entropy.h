// cross_entropy(input weight^T + bias) without its (N, C) logits: products of matrices, the loss and its gradient by
// the kernel of cross_entropy, on a bounded piece of the logits at a time. The gradient takes the place of its logits.
#pragma once

#include "kernels/cross_entropy.h"
#include "kernels/device_library.h"
#include "kernels/output_layer.h"

namespace charlm {

namespace cpu {

template <typename T>
struct LinearCrossEntropy {
  OutputLayer<T> layer;
  T* weight_gradient = nullptr;  // (C, D), null: not wanted
  CrossEntropy<T> loss;          // its input and input_gradient are not read, the pieces' take their place
};

// Two ways to bound the piece. Where the weight's gradient is wanted and has room for all logits (N <= D), they are
// computed into its memory, a block of classes at a time, and each block's gradient replaces them at the end: three
// full products, and extra memory for one block. Otherwise rows go in chunks.
template <typename T>
bool linear_cross_entropy_in_weight_gradient(const LinearCrossEntropy<T>& problem) {
  return problem.weight_gradient != nullptr && problem.layer.input.rows <= problem.layer.input.columns;
}

template <typename T>
void linear_cross_entropy(const LinearCrossEntropy<T>& problem);

}  // namespace cpu

// On a GPU a chunk of rows at a time. Everything is memory of the device; nothing waits for it. Out-of-range targets:
// see kernels/cross_entropy.h; the NaN of such a row reaches the gradients of weight and bias.
namespace cuda {

template <typename T>
struct LinearCrossEntropy {
  OutputLayer layer;
  // N, C, targets, probabilities, options and lse. Its input and input_gradient are not read, the chunks' take their
  // place; under a mean the scale becomes what the host knows of it.
  CrossEntropy<T> loss;
  bool mean = false;            // divides gradients, and the result, by the mean's denominator
  T* row_loss = nullptr;        // (N,), null: not wanted
  T* total_loss = nullptr;      // (1,), null: not wanted
  const T* upstream = nullptr;  // (1,), a factor of every gradient; null: 1
};

template <typename T>
Error linear_cross_entropy(const LinearCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
