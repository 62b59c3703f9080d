// C (m, n) = A (m, k) B (k, n), or C += A B, on one thread.
//
// Every element of C is one chain of multiply-adds over k = 0, 1, ..., whatever the shape around it: callers may cut m
// and n as they like, and results stay the same bits. A is read in place through any strides. B comes as panels of
// kPanelVectors vectors of columns, either packed (pack_panels) or as rows padded to the vector width.
//
// cpu/block_gemm.h is for operands that are in cache in blocks already. One product for both was tried: with a loop for
// every height of a tile, as small products want, this one compiles in six times the time; with fewer heights and
// strides that the compiler does not know, N = 4096, V = 50,000, H = 512 took 7 % longer.
#pragma once

#include "kernels/cpu/vec.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// kTileRows x kPanelVectors accumulators, a vector of B for each column of them and one of A fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kTileRows = 8;
#else
inline constexpr int kTileRows = 4;
#endif
inline constexpr int kPanelVectors = 3;

template <typename T>
inline constexpr int kPanelColumns = kPanelVectors * kWidth<T>;

template <typename T>
constexpr int64_t padded_columns(int64_t columns) {
  return (columns + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

// A panel is its k rows, one after the other; the last panel is only as wide as it needs to be.
template <typename T>
CHARLM_INLINE int64_t panel_width(int64_t columns, int64_t first) {
  const int64_t left = padded_columns<T>(columns - first);
  return left < kPanelColumns<T> ? left : kPanelColumns<T>;
}

// B given by strides, packed into depth * padded_columns(columns) values.
template <typename T>
void pack_panels(const T* b, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t columns, T* out) {
  for (int64_t first = 0; first < columns; first += kPanelColumns<T>) {
    const int64_t width = panel_width<T>(columns, first);
    const int64_t count = columns - first < width ? columns - first : width;
    for (int64_t k = 0; k < depth; ++k, out += width) {
      const T* row = b + k * row_stride + first * column_stride;
      for (int64_t c = 0; c < count; ++c) out[c] = row[c * column_stride];
      for (int64_t c = count; c < width; ++c) out[c] = 0;
    }
  }
}

template <typename T>
struct MatrixA {
  const T* data;
  int64_t row_stride, depth_stride;
};
template <typename T>
struct MatrixB {
  const T* data;
  int64_t row_stride = 0;  // of padded rows; 0: packed panels
};

template <typename T, int kVectors>
void gemm_tile(int64_t rows, int64_t depth, const MatrixA<T>& a, const T* b, int64_t b_stride, T* c, int64_t c_stride,
               int last_lanes, bool accumulate) {
  const T* a_row[kTileRows];
  // Rows past the last repeat it, and are not stored.
  for (int i = 0; i < kTileRows; ++i) a_row[i] = a.data + (i < rows ? i : rows - 1) * a.row_stride;
  Vec<T> sum[kTileRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> b_row[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) b_row[j] = load(b + j * kWidth<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const T value = *a_row[i];
      a_row[i] += a.depth_stride;
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] += value * b_row[j];
    }
    b += b_stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= rows) break;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      T* out = c + i * c_stride + j * kWidth<T>;
      const int lanes = j == kVectors - 1 ? last_lanes : kWidth<T>;
      if (accumulate) sum[i][j] += load_lanes<T>(out, lanes, 0);
      store_lanes<T>(out, sum[i][j], lanes);
    }
  }
}

template <typename T>
void gemm(int64_t rows, int64_t columns, int64_t depth, const MatrixA<T>& a, const MatrixB<T>& b, T* c,
          int64_t c_stride, bool accumulate) {
  const T* panel = b.data;
  for (int64_t first = 0; first < columns; first += kPanelColumns<T>) {
    const int64_t width = panel_width<T>(columns, first);
    const int vectors = (int)(width / kWidth<T>);
    const int64_t left = columns - first < width ? columns - first : width;
    const int last_lanes = (int)left - (vectors - 1) * kWidth<T>;
    const int64_t b_stride = b.row_stride == 0 ? width : b.row_stride;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const MatrixA<T> a_tile{a.data + row * a.row_stride, a.row_stride, a.depth_stride};
      T* c_tile = c + row * c_stride + first;
      static_assert(kPanelVectors == 3);
      if (vectors == 3) {
        gemm_tile<T, 3>(rows - row, depth, a_tile, panel, b_stride, c_tile, c_stride, last_lanes, accumulate);
      } else if (vectors == 2) {
        gemm_tile<T, 2>(rows - row, depth, a_tile, panel, b_stride, c_tile, c_stride, last_lanes, accumulate);
      } else {
        gemm_tile<T, 1>(rows - row, depth, a_tile, panel, b_stride, c_tile, c_stride, last_lanes, accumulate);
      }
    }
    panel += b.row_stride == 0 ? depth * width : width;
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
