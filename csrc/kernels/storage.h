// How a floating-point tensor is stored, and how its values become the float or double that kernels compute in.
#pragma once

#include <stdint.h>

#include "kernels/isa.h"

// Functions that kernels for the GPU call as well.
#if defined(__CUDACC__)
#define CHARLM_HOST_DEVICE __host__ __device__
#else
#define CHARLM_HOST_DEVICE
#endif

namespace charlm {

enum class Storage { kFloat32, kFloat64, kBFloat16, kFloat16 };

inline int64_t storage_size(Storage storage) {
  return storage == Storage::kFloat64 ? 8 : storage == Storage::kFloat32 ? 4 : 2;
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// To nearest, ties to even.
CHARLM_SHARED_INLINE BFloat16 nearest_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

template <typename S>
inline constexpr Storage kStorageOf = Storage::kFloat32;
template <>
inline constexpr Storage kStorageOf<double> = Storage::kFloat64;
template <>
inline constexpr Storage kStorageOf<BFloat16> = Storage::kBFloat16;
template <>
inline constexpr Storage kStorageOf<Float16> = Storage::kFloat16;

// A matrix of either, or of float or double. Strides in elements.
struct StoredMatrix {
  void* data = nullptr;
  Storage storage = Storage::kFloat32;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
};

// An (N, C) matrix of class scores inside a tensor (outer, C, inner): row n = (n / inner, n % inner). Strides in
// elements.
struct ClassMatrix {
  void* data = nullptr;
  Storage storage = Storage::kFloat32;
  int64_t inner = 1;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  int64_t class_stride = 1;
  // Where not 0, on the CPU alone: each block of so many classes is a matrix of contiguous rows, the last block with
  // the classes that are left, and blocks begin block_stride apart. The strides above are not read then.
  int64_t block_classes = 0;
  int64_t block_stride = 0;

  CHARLM_HOST_DEVICE int64_t row_offset(int64_t row) const {
    return row / inner * outer_stride + row % inner * inner_stride;
  }
};

}  // namespace charlm
