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
  Matrix input;                // (N, D)
  Matrix weight;               // (C, D), stored as input is, like all that follows but the loss
  const void* bias = nullptr;  // (C,), null: none
  // N, C, targets, probabilities, options and lse. Its input and input_gradient are not read, the chunks' take their
  // place; under a mean the scale becomes what the host knows of it.
  CrossEntropy<T> loss;
  bool mean = false;                // divides gradients, and the result, by the mean's denominator
  T* row_loss = nullptr;            // (N,), null: not wanted
  T* total_loss = nullptr;          // (1,), null: not wanted
  const T* upstream = nullptr;      // (1,), a factor of every gradient; null: 1
  void* input_gradient = nullptr;   // (N, D) contiguous, like the next two null where not wanted
  void* weight_gradient = nullptr;  // (C, D)
  void* bias_gradient = nullptr;    // (C,)
};

// The product for the weight's gradient reads and writes all of it, C * D sums in float32, for each chunk: 8 bytes for
// 2 * rows operations a value. At 2,048 rows that is 512 operations a byte, more than any GPU can do for a byte of its
// memory, and at C = 256,000 as many rows in bfloat16 are 1 GiB. A chunk of so many rows is at most a part in 16 of a
// large batch, and of bounded size.
inline constexpr int64_t kChunkRows = 2048;
inline constexpr int64_t kChunkParts = 16;
inline constexpr int64_t kChunkBytes = 1ll << 30;
inline constexpr int64_t kMinChunkRows = 256;
inline constexpr int64_t kChunkMultiple = 128;  // rows of the products' tiles

// From one row of a chunk to the next, in elements. Rows of a whole number of lines of the cache are what products are
// fastest with: cuBLAS takes a slower path for rows that begin anywhere, as those of 50,257 classes do. Few classes are
// rounded up to whole vectors only.
inline constexpr int64_t kLineElements = 64;
inline constexpr int64_t kRowVectorBytes = 16;

template <typename T>
int64_t linear_cross_entropy_stride(const LinearCrossEntropy<T>& problem) {
  const int64_t vector = kRowVectorBytes / storage_size(problem.input.storage);
  const int64_t multiple = problem.loss.classes < 8 * kLineElements ? vector : kLineElements;
  return (problem.loss.classes + multiple - 1) / multiple * multiple;
}

// Where the weight is stored in a smaller type than float32, sums over chunks are memory beside its gradient. If all
// logits take no more than those sums and a chunk, there is one chunk: a single product adds up in float32 as well.
template <typename T>
int64_t linear_cross_entropy_chunk_rows(const LinearCrossEntropy<T>& problem) {
  const int64_t rows = problem.loss.rows, value_bytes = storage_size(problem.input.storage);
  int64_t chunk = rows / kChunkParts > kChunkRows ? rows / kChunkParts : kChunkRows;
  const int64_t row_bytes = linear_cross_entropy_stride(problem) * value_bytes;
  const int64_t fitting = kChunkBytes / (row_bytes > 0 ? row_bytes : 1);
  if (chunk > fitting) chunk = fitting > kMinChunkRows ? fitting : kMinChunkRows;
  chunk = chunk / kChunkMultiple * kChunkMultiple;
  const bool has_sums = problem.weight_gradient != nullptr && value_bytes < static_cast<int64_t>(sizeof(T));
  const int64_t sum_bytes = has_sums ? problem.input.columns * static_cast<int64_t>(sizeof(T)) : 0;  // for each class
  return has_sums && (rows - chunk) * value_bytes <= sum_bytes ? rows : chunk;
}

template <typename T>
Error linear_cross_entropy(const LinearCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
