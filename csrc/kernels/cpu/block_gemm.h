// Products of matrices stored in blocks (kernels/blocks.h), which are in cache and need no packing.
//
//   C (M x N vectors) = or += A (M x K) B (K x N vectors)     A is read element by element, by rows or by columns
//
// Every element of C is summed in order of the inner dimension, whatever the number of rows. The engine's products have
// a few dozen rows and a few dozen steps, so that packing, strides and unequal tiles would show; cpu/gemm.h has the
// product of any matrices, and why it is another.
#pragma once

#include "kernels/cpu/vec.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kMaxVectors = 4;    // width of a register tile
inline constexpr int kTileVectors = 24;  // accumulators, of 32 registers
inline constexpr int kMaxTileRows = 16;  // of a narrow tile
#else
inline constexpr int kMaxVectors = 2;
inline constexpr int kTileVectors = 12;  // of 16 registers
inline constexpr int kMaxTileRows = 8;
#endif

template <int N>
inline constexpr int kBlockRows = kTileVectors / N < kMaxTileRows ? kTileVectors / N : kMaxTileRows;

// The left operand of a product, M x K: element (m, k) is data[m * stride + k], or data[k * stride + m] by columns.
template <typename T, bool kByColumns>
struct Left {
  const T* data;
  int64_t stride;

  CHARLM_INLINE T operator()(int64_t m, int64_t k) const {
    return kByColumns ? data[k * stride + m] : data[m * stride + k];
  }
  CHARLM_INLINE Left from_row(int64_t m) const { return {data + (kByColumns ? m : m * stride), stride}; }
};

// All loops but the one over k are unrolled, so that the sums live in registers.
template <int N, int M, bool kByColumns, typename T>
inline void multiply_tile(int64_t depth, Left<T, kByColumns> a, const T* b, T* c, bool accumulate) {
  constexpr int kRow = N * kWidth<T>;
  Vec<T> sum[M][N] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) row[n] = load(b + k * kRow + n * kWidth<T>);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const T value = a(m, k);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[m][n] += value * row[n];
    }
  }
  if (accumulate) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) sum[m][n] += load(c + m * kRow + n * kWidth<T>);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) store(c + m * kRow + n * kWidth<T>, sum[m][n]);
  }
}

template <int N, int M, bool kByColumns, typename T>
CHARLM_INLINE void multiply_rows(int64_t rows, int64_t depth, Left<T, kByColumns> a, const T* b, T* c,
                                 bool accumulate) {
  if (rows == M) return multiply_tile<N, M, kByColumns>(depth, a, b, c, accumulate);
  if constexpr (M > 1) multiply_rows<N, M - 1>(rows, depth, a, b, c, accumulate);
}

// C (M x N vectors) = or += A (M x K) B (K x N vectors). B and C have contiguous rows of exactly N vectors. The rows
// are cut into groups as equal as can be: a group of a few rows would leave the multipliers waiting for each other.
template <int N, bool kByColumns, typename T>
inline void multiply(int64_t rows, int64_t depth, Left<T, kByColumns> a, const T* b, T* c, bool accumulate) {
  constexpr int kRows = kBlockRows<N>;
  const int64_t groups = (rows + kRows - 1) / kRows;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = rows * g / groups, last = rows * (g + 1) / groups;
    multiply_rows<N, kRows>(last - first, depth, a.from_row(first), b, c + first * N * kWidth<T>, accumulate);
  }
}

// Calls function.template operator()<N>() with the number of vectors in a block of that width.
template <typename T, typename Function>
CHARLM_INLINE void with_vectors(int64_t width, const Function& function) {
  switch ((int)width / kWidth<T>) {
    case 1:
      return function.template operator()<1>();
    case 2:
      return function.template operator()<2>();
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return function.template operator()<3>();
    case 4:
      return function.template operator()<4>();
#endif
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
