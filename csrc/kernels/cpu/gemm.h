// Small matrix products on register tiles, for operands that are in cache and need no packing.
//
//   multiply<N>        C (+)= A B     N vectors wide; A is read element by element, by rows or by columns
//   multiply_transposed C += A B^T    sums over lanes, block by block of a long dimension
//
// Every element of C is summed in order of the inner dimension, whatever the number of rows.
#pragma once

#include "kernels/blocks.h"
#include "kernels/cpu/vec.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kMaxVectors = 4;      // width of a register tile
inline constexpr int kTileVectors = 24;    // accumulators, of 32 registers
inline constexpr int kMaxTileRows = 12;    // of a narrow tile
inline constexpr int kTransposedRows = 5;  // 5 x 5 accumulators
#else
inline constexpr int kMaxVectors = 2;
inline constexpr int kTileVectors = 12;  // of 16 registers
inline constexpr int kMaxTileRows = 8;
inline constexpr int kTransposedRows = 3;
#endif

template <int N>
inline constexpr int kTileRows = kTileVectors / N < kMaxTileRows ? kTileVectors / N : kMaxTileRows;

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

template <int N, int M, bool kByColumns, typename T>
inline void multiply_tile(int64_t depth, Left<T, kByColumns> a, const T* b, T* c, bool accumulate) {
  constexpr int kRow = N * kWidth<T>;
  Vec<T> sum[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) sum[m][n] = accumulate ? load(c + m * kRow + n * kWidth<T>) : Vec<T>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[N];
    for (int n = 0; n < N; ++n) row[n] = load(b + k * kRow + n * kWidth<T>);
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) sum[m][n] += a(m, k) * row[n];
    }
  }
  for (int m = 0; m < M; ++m) {
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
  constexpr int kRows = kTileRows<N>;
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

// Rows of a matrix stored block by block, `rows` rows in all, from row `first` on.
template <typename T>
struct BlockRows {
  const T* data;
  int64_t rows;
  int64_t first;

  CHARLM_INLINE const T* at(const Blocks& blocks, int64_t block) const {
    return data + rows * blocks.begin(block) + first * blocks.width(block);
  }
};

template <int M, int N, typename T>
inline void multiply_transposed_tile(const Blocks& blocks, BlockRows<T> a, BlockRows<T> b, T* c, int64_t c_stride) {
  Vec<T> sum[M][N] = {};
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t width = blocks.width(block);
    const T* left = a.at(blocks, block);
    const T* right = b.at(blocks, block);
    for (int64_t k = 0; k < width; k += kWidth<T>) {
      Vec<T> row[N];
      for (int n = 0; n < N; ++n) row[n] = load(right + n * width + k);
      for (int m = 0; m < M; ++m) {
        const Vec<T> value = load(left + m * width + k);
        for (int n = 0; n < N; ++n) sum[m][n] += value * row[n];
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) c[m * c_stride + n] += sum_lanes<T>(sum[m][n]);
  }
}

template <int M, int N, typename T>
CHARLM_INLINE void multiply_transposed_columns(int64_t columns, const Blocks& blocks, BlockRows<T> a, BlockRows<T> b,
                                               T* c, int64_t c_stride) {
  if (columns == N) return multiply_transposed_tile<M, N>(blocks, a, b, c, c_stride);
  if constexpr (N > 1) multiply_transposed_columns<M, N - 1>(columns, blocks, a, b, c, c_stride);
}
template <int M, typename T>
CHARLM_INLINE void multiply_transposed_rows(int64_t rows, int64_t columns, const Blocks& blocks, BlockRows<T> a,
                                            BlockRows<T> b, T* c, int64_t c_stride) {
  if (rows == M) return multiply_transposed_columns<M, kTransposedRows>(columns, blocks, a, b, c, c_stride);
  if constexpr (M > 1) multiply_transposed_rows<M - 1>(rows, columns, blocks, a, b, c, c_stride);
}

// C (M x N, row stride c_stride) += A (M x K) B^T (N x K); K is the dimension that `blocks` cuts.
template <typename T>
inline void multiply_transposed(int64_t rows, int64_t columns, const Blocks& blocks, BlockRows<T> a, BlockRows<T> b,
                                T* c, int64_t c_stride) {
  constexpr int64_t kRows = kTransposedRows;
  const int64_t row_groups = (rows + kRows - 1) / kRows, column_groups = (columns + kRows - 1) / kRows;
  for (int64_t i = 0; i < row_groups; ++i) {
    const int64_t row = rows * i / row_groups, row_end = rows * (i + 1) / row_groups;
    for (int64_t j = 0; j < column_groups; ++j) {
      const int64_t column = columns * j / column_groups, column_end = columns * (j + 1) / column_groups;
      multiply_transposed_rows<kRows>(
          row_end - row, column_end - column, blocks, BlockRows<T>{a.data, a.rows, a.first + row},
          BlockRows<T>{b.data, b.rows, b.first + column}, c + row * c_stride + column, c_stride);
    }
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
