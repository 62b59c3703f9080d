// Token ids of any integer type as int32 keys.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/device_library.h"
#include "kernels/token_index.h"

namespace charlm::cuda {
namespace {

__device__ inline int64_t id_of(const TokenIds& ids, int64_t row, int64_t position) {
  const int64_t at = row * ids.row_stride + position * ids.position_stride;
  switch (ids.type) {
    case IntegerType::kInt8:
      return static_cast<const int8_t*>(ids.data)[at];
    case IntegerType::kInt16:
      return static_cast<const int16_t*>(ids.data)[at];
    case IntegerType::kInt32:
      return static_cast<const int32_t*>(ids.data)[at];
    case IntegerType::kUInt8:
      return static_cast<const uint8_t*>(ids.data)[at];
    case IntegerType::kUInt16:
      return static_cast<const uint16_t*>(ids.data)[at];
    case IntegerType::kUInt32:
      return static_cast<const uint32_t*>(ids.data)[at];
    default:  // those of uint64 beyond int64 become negative, and are out of range all the same
      return static_cast<const int64_t*>(ids.data)[at];
  }
}

inline constexpr int kKeyThreads = 256;

// Keys are rows of a table, one per id and position, or the ids themselves.
__global__ void __launch_bounds__(kKeyThreads)
    read_keys(const TokenIds ids, int64_t vocab_size, bool per_position, int32_t* keys) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kKeyThreads + threadIdx.x;
  if (row >= ids.rows) return;
  bool valid = true;
  for (int64_t t = 0; t < ids.context_length; ++t) {
    const int64_t id = id_of(ids, row, t);
    valid = valid && id >= 0 && id < vocab_size;
  }
  for (int64_t t = 0; t < ids.context_length; ++t) {
    const int64_t id = id_of(ids, row, t);
    const int64_t key = per_position ? id * ids.context_length + t : id;
    keys[row * ids.context_length + t] = valid ? static_cast<int32_t>(key) : -1;
  }
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
