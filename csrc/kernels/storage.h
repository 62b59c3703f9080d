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

CHARLM_SHARED_INLINE float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
CHARLM_SHARED_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// What kernels compute in, float or double, from what a tensor stores, and back: to nearest, ties to even.
CHARLM_SHARED_INLINE float to_compute(float value) { return value; }
CHARLM_SHARED_INLINE double to_compute(double value) { return value; }
CHARLM_SHARED_INLINE float to_compute(BFloat16 value) { return bits_to_float((uint32_t)value.bits << 16); }
CHARLM_SHARED_INLINE float to_compute(Float16 value) {
  // Exponent and mantissa moved into place, then a multiplication by 2^112 corrects the bias and normalises denormals.
  const uint32_t magnitude = (uint32_t)(value.bits & 0x7fff) << 13;
  const uint32_t sign = (uint32_t)(value.bits & 0x8000) << 16;
  const uint32_t finite = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  return bits_to_float((magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite) | sign);
}

CHARLM_SHARED_INLINE void from_compute(float value, float* out) { *out = value; }
CHARLM_SHARED_INLINE void from_compute(double value, double* out) { *out = value; }
CHARLM_SHARED_INLINE void from_compute(float value, BFloat16* out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = (uint16_t)(value != value ? 0x7fc0u : rounded);
}
CHARLM_SHARED_INLINE void from_compute(float value, Float16* out) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is denormal: adding 0.5 aligns its last bit with float's, and the adder rounds.
  const uint32_t denormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  uint32_t result = magnitude < 0x38800000u ? denormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // rounds past 65504: infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;   // NaN
  out->bits = (uint16_t)(result | sign);
}

template <typename S>
inline constexpr Storage kStorageOf = Storage::kFloat32;
template <>
inline constexpr Storage kStorageOf<double> = Storage::kFloat64;
template <>
inline constexpr Storage kStorageOf<BFloat16> = Storage::kBFloat16;
template <>
inline constexpr Storage kStorageOf<Float16> = Storage::kFloat16;

// Calls function(S*) with the data as its storage type. T is the compute type: float64 is stored as itself.
template <typename T, typename Function>
CHARLM_SHARED_INLINE void with_storage(void* data, Storage storage, const Function& function) {
  if constexpr (sizeof(T) == 8) {
    function(static_cast<double*>(data));
  } else {
    switch (storage) {
      case Storage::kBFloat16:
        return function(static_cast<BFloat16*>(data));
      case Storage::kFloat16:
        return function(static_cast<Float16*>(data));
      default:
        return function(static_cast<float*>(data));
    }
  }
}

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
    // Mostly there is nothing to divide by, and a GPU takes a hundred instructions for that.
    return inner == 1 ? row * outer_stride : row / inner * outer_stride + row % inner * inner_stride;
  }
};

}  // namespace charlm
