// Values as tensors store them and as kernels compute with them, one at a time and in vectors of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/storage.h"

namespace charlm::cuda {

template <typename S>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename S>
using Compute = typename ComputeType<S>::type;
template <typename S>
inline constexpr Storage kComputeStorage = sizeof(Compute<S>) == sizeof(double) ? Storage::kFloat64 : Storage::kFloat32;

__device__ inline float to_compute(float value) { return value; }
__device__ inline double to_compute(double value) { return value; }
__device__ inline float to_compute(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_compute(__half value) { return __half2float(value); }

template <typename S, typename T>
__device__ inline S to_storage(T value) {
  return static_cast<S>(value);
}
template <>
__device__ inline __nv_bfloat16 to_storage(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half to_storage(float value) {
  return __float2half_rn(value);
}

inline constexpr int kVectorBytes = 16;  // the widest access a thread makes
template <typename S>
inline constexpr int kVectorWidth = kVectorBytes / static_cast<int>(sizeof(S));

template <typename S>
struct alignas(kVectorBytes) Vector {
  S values[kVectorWidth<S>];
};

// Elements before the first that lies on a 16-byte boundary.
template <typename S>
__device__ inline int64_t misaligned_head(const S* data) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(data) % kVectorBytes;
  return past == 0 ? 0 : static_cast<int64_t>((kVectorBytes - past) / sizeof(S));
}

template <typename S>
__device__ inline Vector<S> load_vector(const S* data) {
  const uint4 raw = *reinterpret_cast<const uint4*>(data);
  Vector<S> vector;
  memcpy(&vector, &raw, sizeof(raw));
  return vector;
}
template <typename S>
__device__ inline void store_vector(S* data, const Vector<S>& vector) {
  uint4 raw;
  memcpy(&raw, &vector, sizeof(raw));
  *reinterpret_cast<uint4*>(data) = raw;
}

// Calls function(S{}) with the storage type of a problem that computes in T.
template <typename T, typename Function>
auto with_storage(Storage storage, const Function& function) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return function(double{});
  } else {
    switch (storage) {
      case Storage::kBFloat16:
        return function(__nv_bfloat16{});
      case Storage::kFloat16:
        return function(__half{});
      default:
        return function(float{});
    }
  }
}

// The same where nothing has settled what to compute in.
template <typename Function>
auto with_any_storage(Storage storage, const Function& function) {
  return storage == Storage::kFloat64 ? function(double{}) : with_storage<float>(storage, function);
}

}  // namespace charlm::cuda
