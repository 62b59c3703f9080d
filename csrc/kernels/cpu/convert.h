// Conversions between storage types and the compute types float and double, and the copies of rows into and out of
// contiguous scratch that let every row kernel be written once, for contiguous float or double rows.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/storage.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Two vectors of them are in the bits of one of floats.
typedef uint16_t HalfVec __attribute__((vector_size(CHARLM_VECTOR_BYTES / 2)));
typedef uint32_t BitVec __attribute__((vector_size(CHARLM_VECTOR_BYTES)));

CHARLM_INLINE HalfVec load_halves(const void* pointer, int count) {
  HalfVec halves = {};
  if (count == kWidth<float>) {
    __builtin_memcpy(&halves, pointer, sizeof(halves));
    return halves;
  }
#if defined(__AVX512F__)
  return (HalfVec)_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), pointer);
#else
  for (int lane = 0; lane < count; ++lane) halves[lane] = static_cast<const uint16_t*>(pointer)[lane];
  return halves;
#endif
}
CHARLM_INLINE void store_halves(void* pointer, HalfVec halves, int count) {
  if (count == kWidth<float>) {
    __builtin_memcpy(pointer, &halves, sizeof(halves));
    return;
  }
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(pointer, (__mmask16)((1u << count) - 1), (__m256i)halves);
#else
  for (int lane = 0; lane < count; ++lane) static_cast<uint16_t*>(pointer)[lane] = halves[lane];
#endif
}

// The first `count` values as what is computed in, 0 in the other lanes; and back.
CHARLM_INLINE Vec<float> load_as(const float* pointer, int count) { return load_lanes<float>(pointer, count, 0); }
CHARLM_INLINE Vec<double> load_as(const double* pointer, int count) { return load_lanes<double>(pointer, count, 0); }
// GCC makes several instructions of a conversion that AVX-512 has.
CHARLM_INLINE BitVec widened(HalfVec halves) {
#if defined(__AVX512F__)
  return (BitVec)_mm512_cvtepu16_epi32((__m256i)halves);
#else
  return __builtin_convertvector(halves, BitVec);
#endif
}
CHARLM_INLINE HalfVec narrowed(BitVec bits) {
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, HalfVec);
#endif
}

CHARLM_INLINE Vec<float> load_as(const BFloat16* pointer, int count) {
  return (Vec<float>)(widened(load_halves(pointer, count)) << 16);
}
CHARLM_INLINE Vec<float> load_as(const Float16* pointer, int count) {
  const HalfVec halves = load_halves(pointer, count);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)halves);
#else
  const IntVec<float> bits = (IntVec<float>)widened(halves), magnitude = (bits & 0x7fff) << 13;
  const IntVec<float> finite = (IntVec<float>)((Vec<float>)magnitude * 0x1p112f);
  return (Vec<float>)((magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite) | (bits & 0x8000) << 16);
#endif
}

CHARLM_INLINE void store_as(float* pointer, Vec<float> values, int count) {
  store_lanes<float>(pointer, values, count);
}
CHARLM_INLINE void store_as(double* pointer, Vec<double> values, int count) {
  store_lanes<double>(pointer, values, count);
}
CHARLM_INLINE HalfVec round_to_bfloat16(Vec<float> values) {
#if defined(__AVX512BF16__)
  return (HalfVec)_mm512_cvtneps_pbh((__m512)values);
#else
  const BitVec bits = (BitVec)values, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return narrowed(values != values ? BitVec{} + 0x7fc0u : rounded);
#endif
}
CHARLM_INLINE void store_as(BFloat16* pointer, Vec<float> values, int count) {
  store_halves(pointer, round_to_bfloat16(values), count);
}
CHARLM_INLINE void store_as(Float16* pointer, Vec<float> values, int count) {
#if defined(__AVX512F__)
  store_halves(pointer, (HalfVec)_mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), count);
#elif defined(__AVX2__)
  store_halves(pointer, (HalfVec)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT), count);
#else
  // As from_compute has it, on signed integers, which narrow vectors compare faster.
  const IntVec<float> bits = (IntVec<float>)values, magnitude = bits & 0x7fffffff;
  const IntVec<float> denormal = (IntVec<float>)((Vec<float>)magnitude + 0.5f) - 0x3f000000;
  const IntVec<float> normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  IntVec<float> half = magnitude < 0x38800000 ? denormal : normal;
  half = magnitude >= 0x477ff000 ? IntVec<float>{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? IntVec<float>{} + 0x7e00 : half;
  store_halves(pointer, narrowed((BitVec)(half | ((bits >> 16) & 0x8000))), count);
#endif
}

// rows x columns values from strided storage to rows of scratch, and back. The loop over the smaller stride is
// innermost.
template <typename S, typename T>
inline void pack_rows(const S* source, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns, T* out,
                      int64_t out_stride) {
  if (column_stride == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) out[r * out_stride + c] = to_compute(source[r * row_stride + c]);
    }
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        out[r * out_stride + c] = to_compute(source[r * row_stride + c * column_stride]);
      }
    }
  }
}
template <typename S, typename T>
inline void unpack_rows(const T* in, int64_t in_stride, int64_t rows, int64_t columns, S* out, int64_t row_stride,
                        int64_t column_stride) {
  if (column_stride == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) from_compute(in[r * in_stride + c], &out[r * row_stride + c]);
    }
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        from_compute(in[r * in_stride + c], &out[r * row_stride + c * column_stride]);
      }
    }
  }
}

template <typename T, typename Function>
CHARLM_INLINE void with_storage(const ClassMatrix& matrix, const Function& function) {
  with_storage<T>(matrix.data, matrix.storage, function);
}

// Whether rows of the matrix are contiguous values of T, which kernels read and write in place.
template <typename T>
CHARLM_INLINE bool is_direct(const StoredMatrix& matrix) {
  return matrix.storage == kStorageOf<T> && matrix.column_stride == 1;
}

// `count` values of a row from column `first` on: in place where the matrix is direct, otherwise copied to scratch.
template <typename T>
__attribute__((noinline)) const T* copy_row(const StoredMatrix& matrix, int64_t offset, int64_t count, T* scratch) {
  with_storage<T>(matrix.data, matrix.storage,
                  [&](auto* data) { pack_rows(data + offset, 0, matrix.column_stride, 1, count, scratch, 0); });
  return scratch;
}
template <typename T>
CHARLM_INLINE const T* read_row(const StoredMatrix& matrix, int64_t row, int64_t first, int64_t count, T* scratch) {
  const int64_t offset = row * matrix.row_stride + first * matrix.column_stride;
  return is_direct<T>(matrix) ? static_cast<const T*>(matrix.data) + offset : copy_row(matrix, offset, count, scratch);
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
