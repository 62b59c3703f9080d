// What ops do with an output layer on the CPU whose logits never exist as a whole: a piece of the logits, of some rows
// and some classes, and what follows from the piece's gradient dz.
//
//   logits = input weight^T + bias
//   d input += dz weight      d weight += dz^T input      d bias += column sums of dz
#pragma once

#include "kernels/product.h"

namespace charlm::cpu {

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

}  // namespace charlm::cpu
