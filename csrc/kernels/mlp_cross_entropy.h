// The op mlp_cross_entropy on a GPU; the CPU's is a training step without an update: kernels/mlp_step.h, where the
// formula is.
//
// A row that has a bad id, or a target out of range, has a NaN as its loss, and so have the gradients that it
// takes part in: those of weight2 and bias2 and, but for a bad id, of the first layer.
#pragma once

#include <stdint.h>

#include "kernels/embedding_linear.h"
#include "kernels/linear_cross_entropy.h"

namespace charlm::cuda {

template <typename T>
struct MlpCrossEntropy {
  EmbeddingLinearCall hidden;    // its output and grad_output are not read
  LinearCrossEntropy<T> output;  // its input and input_gradient are not read, nor what loss has of lse
  bool has_gradient = false;
};

// Whether the model fits into the shared memory of a multiprocessor of the current device, beside a tile of rows: then
// nothing between ids and gradients is written to memory. Else the two layers run one after the other, what is between
// them in memory for the time of the call.
template <typename T>
bool mlp_cross_entropy_in_tiles(const MlpCrossEntropy<T>& problem);

template <typename T>
Error mlp_cross_entropy(const MlpCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream);

}  // namespace charlm::cuda
