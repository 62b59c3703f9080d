// "project" to the parameters: the table P, and from dP their gradients.
//
// P and dP are (V * T, H) with row v * T + t for token v at position t, so that three plain products make them and what
// follows from them: P = E Wt^T, dE = dP Wt and dWt = dP^T E, where Wt (T*H, D) is the weight, position by position.
#pragma once

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/copy.cuh"
#include "kernels/embedding_linear.h"

namespace charlm::cuda {
namespace {

template <typename S>
class Projection {
 public:
  using T = Compute<S>;

  Projection(const EmbeddingLinearCall& call, DeviceLibrary& library, Stream stream)
      : call_(call),
        library_(library),
        stream_(stream),
        context_length_(call.ids.context_length),
        columns_(context_length_ * call.hidden_dim) {}

  int64_t table_rows() const { return call_.vocab_size * context_length_; }

  Error table(const T** table) {
    if (const Error error = read_parameters()) return error;
    T* product = library_.allocate_values<T>(table_rows() * call_.hidden_dim);
    *table = product;
    library_.multiply(matrix(product, call_.vocab_size, columns_), embedding(), weight().transposed());
    return cudaSuccess;
  }

  // `gradient` is dP. What the call does not want is left out.
  Error parameter_gradients(const T* gradient) {
    if (call_.bias_gradient != nullptr) {  // every row of the batch has one token at position 0
      const Error error = column_sums(gradient, call_.vocab_size, call_.hidden_dim, columns_, false,
                                      static_cast<S*>(call_.bias_gradient), library_, stream_);
      if (error != cudaSuccess) return error;
    }
    if (const Error error = read_parameters()) return error;
    const Matrix table = matrix(gradient, call_.vocab_size, columns_);
    if (call_.weight_gradient != nullptr) {
      T* swapped = library_.allocate_values<T>(columns_ * call_.embedding_dim);
      library_.multiply(matrix(swapped, columns_, call_.embedding_dim), table.transposed(), embedding());
      const Error error = swap_outer(static_cast<const T*>(swapped), context_length_, call_.hidden_dim,
                                     call_.embedding_dim, static_cast<S*>(call_.weight_gradient), stream_);
      if (error != cudaSuccess) return error;
    }
    if (call_.embedding_gradient == nullptr) return cudaSuccess;
    S* stored = static_cast<S*>(call_.embedding_gradient);
    const int64_t size = call_.vocab_size * call_.embedding_dim;
    T* result = computed_place(stored, size, library_);
    library_.multiply(matrix(result, call_.vocab_size, call_.embedding_dim), table, weight());
    return store_computed(result, size, stored, stream_);
  }

 private:
  static constexpr Storage kStorage = sizeof(T) == sizeof(double) ? Storage::kFloat64 : Storage::kFloat32;
  static Matrix matrix(const T* data, int64_t rows, int64_t columns) { return Matrix(data, kStorage, rows, columns); }
  Matrix embedding() const { return matrix(embedding_, call_.vocab_size, call_.embedding_dim); }
  Matrix weight() const { return matrix(weight_, columns_, call_.embedding_dim); }

  // E and Wt as T, once.
  Error read_parameters() {
    if (weight_ != nullptr) return cudaSuccess;
    const Error error = as_computed(static_cast<const S*>(call_.embedding), call_.vocab_size * call_.embedding_dim,
                                    &embedding_, library_, stream_);
    if (error != cudaSuccess) return error;
    T* swapped = library_.allocate_values<T>(columns_ * call_.embedding_dim);
    weight_ = swapped;
    return swap_outer(static_cast<const S*>(call_.weight), call_.hidden_dim, context_length_, call_.embedding_dim,
                      swapped, stream_);
  }

  const EmbeddingLinearCall& call_;
  DeviceLibrary& library_;
  Stream stream_;
  int64_t context_length_, columns_;
  const T *embedding_ = nullptr, *weight_ = nullptr;
};

}  // namespace
}  // namespace charlm::cuda
