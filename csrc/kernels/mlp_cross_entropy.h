// The op mlp_cross_entropy. On the CPU it is a training step without an update: kernels/mlp_step.h, where the formula
// is.
#pragma once

#include <stdint.h>

#include "kernels/embedding_linear.h"
#include "kernels/linear_cross_entropy.h"
#include "kernels/models.h"

namespace charlm {

namespace cpu {

// Each distinct context is computed once. Examples whose target is ignored are left out.
template <typename T>
struct MlpCrossEntropy {
  ContextTable contexts;
  Example* pairs = nullptr;  // (N,), in which the call may write
  int64_t examples = 0;      // N
  Pointers<const T> parameters;
  bool mean = false;             // over the examples that are not ignored; otherwise their sum
  T scale = 1;                   // a factor of every gradient
  const T* row_scale = nullptr;  // (N,), one for each example's instead; null: none
  T* row_loss = nullptr;         // (N,), null: not wanted
  Pointers<T> gradients;         // empty: not wanted
};

// Where the parameters are many, and few the rows, copying the parameters takes longer than what it saves: then one
// layer runs after the other. By shape alone, so that a result does not depend on anything else.
inline bool mlp_cross_entropy_in_layers(const ModelShape& shape, int64_t examples) {
  constexpr int64_t kManyParameters = 1 << 18, kParametersOfRow = 1 << 10;
  const int64_t parameters = shape.hidden_dim * (shape.vocab_size + shape.context_length * shape.embedding_dim);
  return parameters > kManyParameters && examples < parameters / kParametersOfRow;
}

// The other way: returns the loss, NaN for the mean of nothing.
template <typename T>
double mlp_cross_entropy(const MlpCrossEntropy<T>& problem, MlpModel<T>* model);

}  // namespace cpu

// On a GPU a row that has a bad id, or a target out of range, has a NaN as its loss, and so have the gradients that it
// takes part in: those of weight2 and bias2 and, but for a bad id, of the first layer.
namespace cuda {

template <typename T>
struct MlpCrossEntropy {
  EmbeddingLinearCall hidden;    // its output and grad_output are not read
  LinearCrossEntropy<T> output;  // its layer's input and input_gradient are not read, nor what loss has of lse
  bool has_gradient = false;
};

// Whether the model fits into the shared memory of a multiprocessor of the current device, beside a tile of rows: then
// nothing between ids and gradients is written to memory. Else the two layers run one after the other, what is between
// them in memory for the time of the call.
template <typename T>
bool mlp_cross_entropy_in_tiles(const MlpCrossEntropy<T>& problem);

template <typename T>
Error mlp_cross_entropy(const MlpCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
