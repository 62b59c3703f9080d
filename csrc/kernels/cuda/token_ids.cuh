// Token ids of any integer type, as kernels read them.
#pragma once

#include <cuda_runtime.h>

#include "kernels/token_index.h"

namespace charlm::cuda {
namespace {

// Calls use(ids), a pointer to the type of the ids. Those of uint64 beyond int64 become negative, and are out of range
// all the same.
template <typename Use>
__device__ inline void with_ids(const TokenIds& ids, const Use& use) {
  switch (ids.type) {
    case IntegerType::kInt8:
      return use(static_cast<const int8_t*>(ids.data));
    case IntegerType::kInt16:
      return use(static_cast<const int16_t*>(ids.data));
    case IntegerType::kInt32:
      return use(static_cast<const int32_t*>(ids.data));
    case IntegerType::kUInt8:
      return use(static_cast<const uint8_t*>(ids.data));
    case IntegerType::kUInt16:
      return use(static_cast<const uint16_t*>(ids.data));
    case IntegerType::kUInt32:
      return use(static_cast<const uint32_t*>(ids.data));
    default:
      return use(static_cast<const int64_t*>(ids.data));
  }
}

}  // namespace
}  // namespace charlm::cuda
