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

// out (columns x padded rows) = in (rows x columns) transposed, both with contiguous rows. The numbers of columns, and
// of rows after padding, are multiples of the vector width; the padding is zero.
template <typename T>
inline void transpose(const T* in, int64_t rows, int64_t columns, T* out, int64_t padded_rows) {
  constexpr int kLanes = kWidth<T>;
  for (int64_t r = 0; r < padded_rows; r += kLanes) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      Vec<T> tile[kLanes];
      for (int i = 0; i < kLanes; ++i) tile[i] = r + i < rows ? load(in + (r + i) * columns + c) : Vec<T>{};
      transpose_spans<1, T>(tile);
      for (int i = 0; i < kLanes; ++i) store(out + (c + i) * padded_rows + r, tile[i]);
    }
  }
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
