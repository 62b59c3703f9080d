#include <cuda_runtime.h>

#include "kernels/mlp_cross_entropy.h"

namespace charlm::cuda {

template <typename T>
Error mlp_cross_entropy(const MlpCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream) {
  EmbeddingLinearCall hidden = problem.hidden;
  LinearCrossEntropy<T> output = problem.output;
  const int64_t rows = hidden.ids.rows, values = rows * hidden.hidden_dim;
  hidden.output = library.allocate(values * storage_size(hidden.storage));
  if (const Error error = embedding_linear_forward(hidden, library, stream)) return error;

  output.input = Matrix(hidden.output, hidden.storage, rows, hidden.hidden_dim);
  output.loss.shift = library.allocate_values<T>(2 * rows);
  output.loss.log_sum = output.loss.shift + rows;
  if (problem.has_gradient) output.input_gradient = library.allocate(values * storage_size(hidden.storage));
  if (const Error error = linear_cross_entropy(output, library, stream)) return error;
  if (!problem.has_gradient) return cudaSuccess;

  hidden.grad_output = output.input_gradient;
  return embedding_linear_backward(hidden, library, stream);
}

template Error mlp_cross_entropy(const MlpCrossEntropy<float>&, DeviceLibrary&, Stream);
template Error mlp_cross_entropy(const MlpCrossEntropy<double>&, DeviceLibrary&, Stream);

}  // namespace charlm::cuda
