// A column of dP, the gradient of the table P, to which one thread adds what the rows of a batch have for it.
#pragma once

#include <cuda_runtime.h>

namespace charlm::cuda {

inline constexpr int kPositions = 3;  // of a row, whose places a thread adds to at the same time

// column[key * stride] += gradient for some keys of a row. Those of different positions name different places; others
// are to have one and the same sum: of a position that there is not the key is another's, and of a bad id, whose key is
// below 0, the gradient is 0.
template <typename T>
__device__ inline void add_to_places(T* column, int stride, const int (&keys)[kPositions], T gradient) {
  T* to[kPositions];
  T sums[kPositions];
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
    to[i] = column + (keys[i] > 0 ? keys[i] : 0) * stride;
    sums[i] = *to[i];
  }
#pragma unroll
  for (int i = 0; i < kPositions; ++i) *to[i] = sums[i] + gradient;
}

}  // namespace charlm::cuda
