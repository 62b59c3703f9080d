// Threads spread over the rows and columns of a matrix, and the vectors that they move where these fit.
#pragma once

#include <type_traits>

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

// a * b in one instruction, as is an address from it: where the compiler sees long integers, it makes eight.
__device__ inline int64_t long_product(int a, int b) {
#if defined(__CUDACC__)
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<int64_t>(a) * b;
#endif
}

// Row `row` of a matrix that has rows of so many bytes.
template <typename T>
__device__ inline T* row_at(T* first, int row, int row_bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + long_product(row, row_bytes));
}

// Whether rows of so many values, one after the other from `data` on, all begin where an access to kWidth may.
template <int kWidth, typename S>
bool has_vector_rows(const S* data, int64_t columns) {
  return columns % kWidth == 0 && reinterpret_cast<uintptr_t>(data) % (kWidth * sizeof(S)) == 0;
}

// kWidth values in one access, of no type in particular: of others the compiler makes several.
template <int kBytes>
using Bits = std::conditional_t<kBytes == kVectorBytes, uint4, uint2>;

template <int kWidth, typename S>
__device__ inline void load_stored(const S* from, S* to) {
  if constexpr (kWidth == 1) {
    *to = *from;
  } else {
    const auto bits = *reinterpret_cast<const Bits<kWidth * sizeof(S)>*>(from);
    static_assert(sizeof(bits) == kWidth * sizeof(S));
    memcpy(to, &bits, sizeof(bits));
  }
}
template <int kWidth, typename S>
__device__ inline void store_stored(S* to, const S* from) {
  if constexpr (kWidth == 1) {
    *to = *from;
  } else {
    Bits<kWidth * sizeof(S)> bits;
    static_assert(sizeof(bits) == kWidth * sizeof(S));
    memcpy(&bits, from, sizeof(bits));
    *reinterpret_cast<decltype(bits)*>(to) = bits;
  }
}

template <int kWidth, typename S>
__device__ inline void load_values(const S* from, Compute<S>* to) {
  S stored[kWidth];
  load_stored<kWidth>(from, stored);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = to_compute(stored[i]);
}
template <int kWidth, typename S>
__device__ inline void store_values(S* to, const Compute<S>* from) {
  S stored[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) stored[i] = to_storage<S>(from[i]);
  store_stored<kWidth>(to, stored);
}

}  // namespace charlm::cuda
