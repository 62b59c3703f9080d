// Transposition of small matrices in registers.
#pragma once

#include <utility>

#include "kernels/cpu/vec.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// One butterfly: exchanges the upper halves of each group of 2 * kSpan lanes of `a` with the lower halves of `b`.
template <int kSpan, typename T, int... kLane>
CHARLM_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  const Vec<T> lower = __builtin_shufflevector(a, b, ((kLane & kSpan) == 0 ? kLane : kLanes + kLane - kSpan)...);
  b = __builtin_shufflevector(a, b, ((kLane & kSpan) == 0 ? kLane + kSpan : kLanes + kLane)...);
  a = lower;
}

template <int kSpan, typename T>
CHARLM_INLINE void transpose_spans(Vec<T> (&rows)[kWidth<T>]) {
  if constexpr (kSpan < kWidth<T>) {
    for (int i = 0; i < kWidth<T>; ++i) {
      if ((i & kSpan) == 0) {
        exchange<kSpan, T>(rows[i], rows[i + kSpan], std::make_integer_sequence<int, kWidth<T>>());
      }
    }
    transpose_spans<2 * kSpan, T>(rows);
  }
}

// A tile of whole vectors, of whose rows so many are not padding. Not inlined: among loops GCC would keep the addresses
// of all its rows, and they do not fit into registers.
template <typename T>
__attribute__((noinline)) void transpose_tile(const T* in, int64_t in_stride, int64_t rows, T* out,
                                              int64_t out_stride) {
  Vec<T> tile[kWidth<T>];
  for (int i = 0; i < kWidth<T>; ++i) tile[i] = i < rows ? load(in + i * in_stride) : Vec<T>{};
  transpose_spans<1, T>(tile);
  for (int i = 0; i < kWidth<T>; ++i) store(out + i * out_stride, tile[i]);
}

// out (columns x padded_rows) = in (rows x columns) transposed, each with the stride of its rows; what pads it is zero.
template <typename T>
inline void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out, int64_t out_stride,
                      int64_t padded_rows) {
  constexpr int kLanes = kWidth<T>;
  const auto lanes = [](int64_t left) { return left < kLanes ? (int)left : kLanes; };
  for (int64_t r = 0; r < padded_rows; r += kLanes) {
    const int tile_rows = lanes(padded_rows - r);
    for (int64_t c = 0; c < columns; c += kLanes) {
      const T* from = in + r * in_stride + c;
      T* to = out + c * out_stride + r;
      const int tile_columns = lanes(columns - c);
      if (tile_rows == kLanes && tile_columns == kLanes) {
        transpose_tile(from, in_stride, rows - r, to, out_stride);
        continue;
      }
      Vec<T> tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = r + i < rows ? load_lanes<T>(from + i * in_stride, tile_columns, 0) : Vec<T>{};
      }
      transpose_spans<1, T>(tile);
      for (int i = 0; i < tile_columns; ++i) store_lanes<T>(to + i * out_stride, tile[i], tile_rows);
    }
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
