// Threads spread over the rows and columns of a matrix, and the vectors of 16 bytes that they move where these fit.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.cuh"

namespace charlm::cuda {

inline constexpr int kRowGridThreads = 256;

// threadIdx.x walks over the columns, in vectors, and threadIdx.y over rows: narrow matrices have many rows a block. A
// thread takes `rows_per_thread` rows, blockDim.y apart.
struct RowGrid {
  dim3 threads;
  int64_t blocks;

  static RowGrid of(int64_t rows, int64_t vectors, int rows_per_thread) {
    const int64_t x = vectors < 1 ? 1 : vectors > kRowGridThreads ? kRowGridThreads : vectors;
    const int64_t y = kRowGridThreads / x, rows_per_block = y * rows_per_thread;
    return {dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), (rows + rows_per_block - 1) / rows_per_block};
  }
};

// Whether rows of so many values, one after the other from `data` on, all begin where a vector may.
template <typename S>
bool has_vector_rows(const void* data, int64_t columns) {
  return columns % kVectorWidth<S> == 0 && reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0;
}

// kWidth values, which lie where a vector may unless kWidth is 1.
template <int kWidth, typename S>
__device__ inline void load_values(const S* from, Compute<S>* to) {
  if constexpr (kWidth == 1) {
    *to = to_compute(*from);
  } else {
    static_assert(kWidth % kVectorWidth<S> == 0);
#pragma unroll
    for (int v = 0; v < kWidth; v += kVectorWidth<S>) {
      const Vector<S> vector = load_vector(from + v);
#pragma unroll
      for (int i = 0; i < kVectorWidth<S>; ++i) to[v + i] = to_compute(vector.values[i]);
    }
  }
}
template <int kWidth, typename S>
__device__ inline void store_values(S* to, const Compute<S>* from) {
  if constexpr (kWidth == 1) {
    *to = to_storage<S>(*from);
  } else {
    static_assert(kWidth % kVectorWidth<S> == 0);
#pragma unroll
    for (int v = 0; v < kWidth; v += kVectorWidth<S>) {
      Vector<S> vector;
#pragma unroll
      for (int i = 0; i < kVectorWidth<S>; ++i) vector.values[i] = to_storage<S>(from[v + i]);
      store_vector(to + v, vector);
    }
  }
}

}  // namespace charlm::cuda
