// "project" to the parameters: the table P, and from dP their gradients.
//
// P and dP are (V * T, H) with row v * T + t for token v at position t, so that three plain products make them and what
// follows from them: P = E Wt^T, dE = dP Wt and dWt = dP^T E, where Wt (T*H, D) is the weight, position by position.
//
// The last one multiplies zeros in the rows of dP whose pairs do not occur, and a zero times NaN is NaN. So what is not
// finite in E is left out of the product, and added where its token occurs.
#pragma once

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/embedding_linear.h"

namespace charlm::cuda {
namespace {

inline constexpr int kFiniteThreads = 256;
inline constexpr int kFiniteAhead = 4, kKeysAhead = 8;  // loads of a thread that are under way at the same time

// Block d copies column d of (rows, columns), 0 for what is not finite, and counts that.
template <typename S>
__global__ void __launch_bounds__(kFiniteThreads)
    copy_finite(const S* from, int64_t rows, int64_t columns, Compute<S>* to, int32_t* left_out) {
  __shared__ int32_t scratch[kWarp];
  int32_t count = 0;
  for (int64_t first = threadIdx.x; first < rows; first += kFiniteAhead * kFiniteThreads) {
    Compute<S> values[kFiniteAhead];
#pragma unroll
    for (int k = 0; k < kFiniteAhead; ++k) {
      const int64_t row = first + k * kFiniteThreads;
      values[k] = to_compute(from[(row < rows ? row : first) * columns + blockIdx.x]);
    }
#pragma unroll
    for (int k = 0; k < kFiniteAhead; ++k) {
      const int64_t row = first + k * kFiniteThreads;
      if (row >= rows) break;
      to[row * columns + blockIdx.x] = is_finite(values[k]) ? values[k] : Compute<S>(0);
      count += is_finite(values[k]) ? 0 : 1;
    }
  }
  count = block_sum(count, scratch);
  if (threadIdx.x == 0) left_out[blockIdx.x] = count;
}

// What makes dW of the product dWt (T, H, D).
template <typename S>
struct WeightGradient {
  int64_t rows, context_length, vocab_size, hidden_dim, embedding_dim;
  const int32_t* keys;         // (N, T) rows of dP, -1 for none
  const S* embedding;          // (V, D)
  const Compute<S>* table;     // dP
  const int32_t* left_out;     // (D,) how many numbers of the column the product lacks
  const Compute<S>* products;  // dWt
  S* gradient;                 // (H, T*D)

  __device__ bool occurs(int64_t token, int64_t position) const {
    for (int64_t first = 0; first < rows; first += kKeysAhead) {
      bool found = false;
#pragma unroll
      for (int k = 0; k < kKeysAhead; ++k) {
        const int64_t row = first + k < rows ? first + k : first;
        found |= keys[row * context_length + position] == token * context_length + position;
      }
      if (found) return true;
    }
    return false;
  }
};

template <typename S>
__global__ void __launch_bounds__(kCopyThreads)
    store_weight_gradient(const WeightGradient<S> p, const Divisor dimensions, const Divisor positions) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i >= p.hidden_dim * p.context_length * p.embedding_dim) return;
  int64_t d, t;
  const int64_t pair = dimensions.divide(i, &d), h = positions.divide(pair, &t);
  Compute<S> value = p.products[(t * p.hidden_dim + h) * p.embedding_dim + d];
  if (p.left_out[d] > 0) {
    for (int64_t token = 0; token < p.vocab_size && value == value; ++token) {
      const Compute<S> number = to_compute(p.embedding[token * p.embedding_dim + d]);
      if (is_finite(number) || !p.occurs(token, t)) continue;
      value += p.table[(token * p.context_length + t) * p.hidden_dim + h] * number;
    }
  }
  p.gradient[i] = to_storage<S>(value);
}

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
    if (const Error error = read_weight()) return error;
    const T* embedding;
    const Error error = as_computed(static_cast<const S*>(call_.embedding), call_.vocab_size * call_.embedding_dim,
                                    &embedding, library_, stream_);
    if (error != cudaSuccess) return error;
    T* product = library_.allocate_values<T>(table_rows() * call_.hidden_dim);
    *table = product;
    library_.multiply(matrix(product, call_.vocab_size, columns_),
                      matrix(embedding, call_.vocab_size, call_.embedding_dim), weight().transposed());
    return cudaSuccess;
  }

  // `gradient` is dP, whose rows `keys` (N, T) name. What the call does not want is left out.
  Error parameter_gradients(const T* gradient, const int32_t* keys) {
    if (call_.bias_gradient != nullptr) {  // every row of the batch has one token at position 0
      const Error error = column_sums(gradient, call_.vocab_size, call_.hidden_dim, columns_, false,
                                      static_cast<S*>(call_.bias_gradient), library_, stream_);
      if (error != cudaSuccess) return error;
    }
    if (call_.weight_gradient != nullptr) {
      if (const Error error = weight_gradient(gradient, keys)) return error;
    }
    if (call_.embedding_gradient == nullptr) return cudaSuccess;
    if (const Error error = read_weight()) return error;
    S* stored = static_cast<S*>(call_.embedding_gradient);
    const int64_t size = call_.vocab_size * call_.embedding_dim;
    T* result = computed_place(stored, size, library_);
    library_.multiply(matrix(result, call_.vocab_size, call_.embedding_dim),
                      matrix(gradient, call_.vocab_size, columns_), weight());
    return store_computed(result, size, stored, stream_);
  }

 private:
  static Matrix matrix(const T* data, int64_t rows, int64_t columns) {
    return Matrix(data, kComputeStorage<S>, rows, columns);
  }
  Matrix weight() const { return matrix(weight_, columns_, call_.embedding_dim); }

  // Wt, once.
  Error read_weight() {
    if (weight_ != nullptr) return cudaSuccess;
    T* swapped = library_.allocate_values<T>(columns_ * call_.embedding_dim);
    weight_ = swapped;
    return swap_outer(static_cast<const S*>(call_.weight), call_.hidden_dim, context_length_, call_.embedding_dim,
                      swapped, stream_);
  }

  Error weight_gradient(const T* gradient, const int32_t* keys) {
    const int64_t vocab_size = call_.vocab_size, dim = call_.embedding_dim;
    const S* embedding = static_cast<const S*>(call_.embedding);
    T* finite = library_.allocate_values<T>(vocab_size * dim);
    int32_t* left_out = library_.allocate_values<int32_t>(dim);
    const Error error =
        launch(copy_finite<S>, dim, dim3(kFiniteThreads), 0, stream_, embedding, vocab_size, dim, finite, left_out);
    if (error != cudaSuccess) return error;
    T* products = library_.allocate_values<T>(columns_ * dim);
    library_.multiply(matrix(products, columns_, dim), matrix(gradient, vocab_size, columns_).transposed(),
                      matrix(finite, vocab_size, dim));
    const WeightGradient<S> p{call_.ids.rows,
                              context_length_,
                              vocab_size,
                              call_.hidden_dim,
                              dim,
                              keys,
                              embedding,
                              gradient,
                              left_out,
                              products,
                              static_cast<S*>(call_.weight_gradient)};
    const int64_t blocks = (columns_ * dim + kCopyThreads - 1) / kCopyThreads;
    return launch(store_weight_gradient<S>, blocks, dim3(kCopyThreads), 0, stream_, p, Divisor(dim),
                  Divisor(context_length_));
  }

  const EmbeddingLinearCall& call_;
  DeviceLibrary& library_;
  Stream stream_;
  int64_t context_length_, columns_;
  const T* weight_ = nullptr;
};

}  // namespace
}  // namespace charlm::cuda
