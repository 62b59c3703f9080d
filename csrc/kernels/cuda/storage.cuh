// Values as tensors store them and as kernels compute with them, one at a time and in vectors of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/math.cuh"
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

template <typename To, typename From>
__device__ inline To with_bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Two values in the halves of a word. Those of bfloat16 are the upper halves of float's.
__device__ inline void unpack_pair(unsigned word, __nv_bfloat16, float* values) {
  values[0] = __uint_as_float(word << 16);
  values[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline void unpack_pair(unsigned word, __half, float* values) {
  const float2 both = __half22float2(with_bits_of<__half2>(word));
  values[0] = both.x;
  values[1] = both.y;
}
__device__ inline unsigned pack_pair(float low, float high, __nv_bfloat16) {
  return with_bits_of<unsigned>(__floats2bfloat162_rn(low, high));
}
__device__ inline unsigned pack_pair(float low, float high, __half) {
  return with_bits_of<unsigned>(__floats2half2_rn(low, high));
}
// Of each two halves the larger one; of a NaN and a number, the number.
__device__ inline unsigned larger_pair(unsigned a, unsigned b, __nv_bfloat16) {
  return with_bits_of<unsigned>(__hmax2(with_bits_of<__nv_bfloat162>(a), with_bits_of<__nv_bfloat162>(b)));
}
__device__ inline unsigned larger_pair(unsigned a, unsigned b, __half) {
  return with_bits_of<unsigned>(__hmax2(with_bits_of<__half2>(a), with_bits_of<__half2>(b)));
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
__device__ inline int misaligned_head(const S* data) {
  const unsigned past = static_cast<unsigned>(reinterpret_cast<uintptr_t>(data)) % kVectorBytes;
  return static_cast<int>((kVectorBytes - past) % kVectorBytes / sizeof(S));
}

template <typename S>
__device__ inline Vector<S> load_vector(const S* data) {
  const uint4 raw = *reinterpret_cast<const uint4*>(data);
  Vector<S> vector;
  memcpy(&vector, &raw, sizeof(raw));
  return vector;
}

// The values of 16 bytes as they were loaded, to compute with, and back. A loop that loads several such before it takes
// the first one apart has them all under way at the same time.
template <typename S>
__device__ inline void unpack(const uint4& raw, Compute<S>* values) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    memcpy(values, &raw, sizeof(raw));
  } else {
    const unsigned words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_pair(words[i], S{}, values + 2 * i);
  }
}
template <typename S>
__device__ inline uint4 pack(const Compute<S>* values) {
  uint4 raw;
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    memcpy(&raw, values, sizeof(raw));
  } else {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack_pair(values[2 * i], values[2 * i + 1], S{});
    raw = {words[0], words[1], words[2], words[3]};
  }
  return raw;
}

// The largest of the values of several vectors, but for NaN.
template <typename S, int kVectors>
__device__ inline Compute<S> largest_of(const uint4* raw) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    Compute<S> largest = -static_cast<Compute<S>>(INFINITY);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Compute<S> values[kVectorWidth<S>];
      unpack<S>(raw[v], values);
#pragma unroll
      for (int i = 0; i < kVectorWidth<S>; ++i) largest = larger(largest, values[i]);
    }
    return largest;
  } else {
    unsigned pair = raw[0].x;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      pair = larger_pair(larger_pair(pair, raw[v].x, S{}), raw[v].y, S{});
      pair = larger_pair(larger_pair(pair, raw[v].z, S{}), raw[v].w, S{});
    }
    Compute<S> both[2];
    unpack_pair(pair, S{}, both);
    return larger(both[0], both[1]);
  }
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
