#include "kernels/cuda/output_layer.cuh"
#include "kernels/linear_log_probs.h"

namespace charlm::cuda {
namespace {

// use(log_probs of a chunk of rows), whose input is the chunk's logits.
template <typename T, typename Use>
Error for_each_chunk(const LinearLogProbs<T>& problem, DeviceLibrary& library, Stream stream, const Use& use) {
  return with_storage<T>(problem.layer.input.storage, [&](auto storage) {
    OutputLayerCall<decltype(storage)> layer(problem.layer, library, stream);
    return layer.run([&](int64_t first, int64_t rows) {
      LogProbs<T> chunk = rows_from(problem.log_probs, first, rows);
      chunk.input = layer.logits();
      return use(chunk);
    });
  });
}

}  // namespace

template <typename T>
Error linear_log_probs(const LinearLogProbs<T>& problem, DeviceLibrary& library, Stream stream) {
  return for_each_chunk(problem, library, stream, [&](const LogProbs<T>& chunk) { return log_probs(chunk, stream); });
}

template <typename T>
Error linear_log_probs_gradient(const LinearLogProbs<T>& problem, DeviceLibrary& library, Stream stream) {
  if (!problem.layer.wants_gradient()) return cudaSuccess;
  return for_each_chunk(problem, library, stream, [&](LogProbs<T> chunk) {
    chunk.input_gradient = chunk.input;
    return log_probs_gradient(chunk, library, stream);
  });
}

template Error linear_log_probs(const LinearLogProbs<float>&, DeviceLibrary&, Stream);
template Error linear_log_probs(const LinearLogProbs<double>&, DeviceLibrary&, Stream);
template Error linear_log_probs_gradient(const LinearLogProbs<float>&, DeviceLibrary&, Stream);
template Error linear_log_probs_gradient(const LinearLogProbs<double>&, DeviceLibrary&, Stream);

}  // namespace charlm::cuda
