// Token ids of any integer type as int32 keys.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/token_ids.cuh"
#include "kernels/device_library.h"

namespace charlm::cuda {
namespace {

inline constexpr int kKeyThreads = 256;
inline constexpr int kIdsAhead = 4;  // whose loads are under way at the same time

// Ids of a row from `position` on; beyond the last position, that of the last.
template <typename Id>
__device__ inline void load_ids(const Id* row, const TokenIds& ids, int64_t position, int64_t (&values)[kIdsAhead]) {
#pragma unroll
  for (int i = 0; i < kIdsAhead; ++i) {
    const int64_t at = position + i < ids.context_length ? position + i : ids.context_length - 1;
    values[i] = static_cast<int64_t>(row[at * ids.position_stride]);
  }
}

// Keys are rows of a table, one per id and position, or the ids themselves.
__global__ void __launch_bounds__(kKeyThreads)
    read_keys(const TokenIds ids, int64_t vocab_size, bool per_position, int32_t* keys) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kKeyThreads + threadIdx.x;
  if (row >= ids.rows) return;
  with_ids(ids, [&](const auto* data) {
    int64_t values[kIdsAhead];
    bool valid = true;
    int64_t t = 0;
#pragma unroll 1
    do {
      load_ids(data + row * ids.row_stride, ids, t, values);
#pragma unroll
      for (int i = 0; i < kIdsAhead; ++i) valid = valid && values[i] >= 0 && values[i] < vocab_size;
      t += kIdsAhead;
    } while (t < ids.context_length);
    // The last ids that were read come first, so that those of a short context are read once.
#pragma unroll 1
    for (t -= kIdsAhead;;) {
#pragma unroll
      for (int i = 0; i < kIdsAhead; ++i) {
        if (t + i >= ids.context_length) break;
        const int64_t key = per_position ? values[i] * ids.context_length + t + i : values[i];
        keys[row * ids.context_length + t + i] = valid ? static_cast<int32_t>(key) : -1;
      }
      if (t == 0) break;
      t -= kIdsAhead;
      load_ids(data + row * ids.row_stride, ids, t, values);
    }
  });
}

// (N, T) keys, for rows of a table where `per_position`.
inline Error token_keys(const TokenIds& ids, int64_t vocab_size, bool per_position, const int32_t** keys,
                        DeviceLibrary& library, Stream stream) {
  int32_t* written = library.allocate_values<int32_t>(ids.rows * ids.context_length);
  *keys = written;
  return launch(read_keys, (ids.rows + kKeyThreads - 1) / kKeyThreads, dim3(kKeyThreads), 0, stream, ids, vocab_size,
                per_position, written);
}

}  // namespace
}  // namespace charlm::cuda
