// What ops do with an output layer whose logits never exist as a whole: a piece of the logits, of some rows and some
// classes, and what follows from the piece's gradient dz.
//
//   logits = input weight^T + bias
//   d input += dz weight      d weight += dz^T input      d bias += column sums of dz
#pragma once

#include "kernels/product.h"

namespace charlm {

namespace cpu {

template <typename T>
struct OutputLayer {
  Matrix input;                 // (N, D), like the weight in any storage that is computed in T
  Matrix weight;                // (C, D)
  const T* bias = nullptr;      // (C,), null: none
  T* input_gradient = nullptr;  // (N, D) contiguous, like the next null where not wanted
  T* bias_gradient = nullptr;   // (C,)

  // The layer of some of its rows.
  OutputLayer rows_from(int64_t first, int64_t rows) const;
  // Sets to 0 what is added to: the bias's gradient and, where no product sets it, as there is no class, the input's.
  void clear_sums() const;
  // The logits of all rows, from `first_class` on.
  void write_logits(int64_t first_class, const Matrix& logits) const;
  // That of one class of each row: of classes[n * stride], or of any where that is not a class. The same bits.
  void write_chosen_logits(const int64_t* classes, int64_t stride, T* logits) const;
  // The gradients of input and bias, from that of the same logits. The first classes set the input's.
  void add_to_input_gradient(int64_t first_class, const Matrix& gradient) const;
  void add_to_bias_gradient(int64_t first_class, const Matrix& gradient) const;
  // That of the weight's rows of these classes, to `out`, which are contiguous.
  void write_weight_gradient(Write write, const Matrix& gradient, T* out) const;
};

// A contiguous matrix of what is computed in.
template <typename T>
Matrix computed_matrix(T* data, int64_t rows, int64_t columns) {
  return {data, kStorageOf<T>, rows, columns};
}

}  // namespace cpu

// On a GPU a chunk of rows at a time; the gradient of a chunk's logits takes their place.
namespace cuda {

struct OutputLayer {
  Matrix input;                     // (N, D)
  Matrix weight;                    // (C, D), stored as input is, like all that follows
  const void* bias = nullptr;       // (C,), null: none
  void* input_gradient = nullptr;   // (N, D) contiguous, like the next two null where not wanted
  void* weight_gradient = nullptr;  // (C, D)
  void* bias_gradient = nullptr;    // (C,)

  bool wants_gradient() const {
    return input_gradient != nullptr || weight_gradient != nullptr || bias_gradient != nullptr;
  }
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

inline int64_t logit_stride(const OutputLayer& layer) {
  const int64_t vector = kRowVectorBytes / storage_size(layer.input.storage), classes = layer.weight.rows;
  const int64_t multiple = classes < 8 * kLineElements ? vector : kLineElements;
  return (classes + multiple - 1) / multiple * multiple;
}

// Where the weight is stored in a smaller type than float32, sums over chunks are memory beside its gradient. If all
// logits take no more than those sums and a chunk, there is one chunk: a single product adds up in float32 as well.
inline int64_t chunk_rows(const OutputLayer& layer) {
  const int64_t rows = layer.input.rows, value_bytes = storage_size(layer.input.storage);
  int64_t chunk = rows / kChunkParts > kChunkRows ? rows / kChunkParts : kChunkRows;
  const int64_t row_bytes = logit_stride(layer) * value_bytes;
  const int64_t fitting = kChunkBytes / (row_bytes > 0 ? row_bytes : 1);
  if (chunk > fitting) chunk = fitting > kMinChunkRows ? fitting : kMinChunkRows;
  chunk = chunk / kChunkMultiple * kChunkMultiple;
  constexpr int64_t kSumBytes = sizeof(float);
  const bool has_sums = layer.weight_gradient != nullptr && value_bytes < kSumBytes;
  const int64_t sum_bytes = has_sums ? layer.input.columns * kSumBytes : 0;  // for each class
  const bool is_one = chunk >= rows || (has_sums && (rows - chunk) * value_bytes <= sum_bytes);
  return is_one ? rows : chunk;
}

}  // namespace cuda

}  // namespace charlm
