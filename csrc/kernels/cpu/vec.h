// Vectors of float and double, written with GCC/Clang vector extensions: the width is the only thing that changes
// between instruction sets. Everything here is in a namespace per instruction set, isa_<name>: a function compiled for
// AVX-512 must never be the one the linker keeps for the baseline.
#pragma once

#include <stdint.h>

#include "kernels/isa.h"

#if !defined(CHARLM_ISA)
#error "kernels/cpu is compiled once per instruction set, with CHARLM_ISA naming it"
#endif
#define CHARLM_CONCATENATE_(a, b) a##b
#define CHARLM_CONCATENATE(a, b) CHARLM_CONCATENATE_(a, b)
#define CHARLM_ISA_NAMESPACE CHARLM_CONCATENATE(isa_, CHARLM_ISA)

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define CHARLM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CHARLM_VECTOR_BYTES 32
#else
#define CHARLM_VECTOR_BYTES 16
#endif

#define CHARLM_INLINE inline __attribute__((always_inline))
#define CHARLM_LAMBDA_INLINE __attribute__((always_inline))

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename T>
struct VecTraits;
template <>
struct VecTraits<float> {
  typedef float Vec __attribute__((vector_size(CHARLM_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(CHARLM_VECTOR_BYTES)));
};
template <>
struct VecTraits<double> {
  typedef double Vec __attribute__((vector_size(CHARLM_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(CHARLM_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename VecTraits<T>::Vec;
// Integers of the same lane width: bit patterns, and the all-ones/zero masks that comparisons give.
template <typename T>
using IntVec = typename VecTraits<T>::Int;
template <typename T>
inline constexpr int kWidth = CHARLM_VECTOR_BYTES / sizeof(T);

template <typename T>
CHARLM_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // value - 0 is value for every value, so no subtraction remains
}

template <typename T>
CHARLM_INLINE Vec<T> load(const T* pointer) {
  Vec<T> vector;
  __builtin_memcpy(&vector, pointer, sizeof(vector));
  return vector;
}

template <typename T>
CHARLM_INLINE void store(T* pointer, Vec<T> vector) {
  __builtin_memcpy(pointer, &vector, sizeof(vector));
}

// The first `count` < kWidth lanes come from memory, the others are `fill`; nothing past the last lane is touched.
CHARLM_INLINE Vec<float> load_partial(const float* pointer, int count, float fill) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_mask_loadu_ps((__m512)broadcast(fill), (__mmask16)((1u << count) - 1), pointer);
#else
  Vec<float> vector = broadcast(fill);
  for (int lane = 0; lane < count; ++lane) vector[lane] = pointer[lane];
  return vector;
#endif
}
CHARLM_INLINE Vec<double> load_partial(const double* pointer, int count, double fill) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_mask_loadu_pd((__m512d)broadcast(fill), (__mmask8)((1u << count) - 1), pointer);
#else
  Vec<double> vector = broadcast(fill);
  for (int lane = 0; lane < count; ++lane) vector[lane] = pointer[lane];
  return vector;
#endif
}

CHARLM_INLINE void store_partial(float* pointer, Vec<float> vector, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(pointer, (__mmask16)((1u << count) - 1), (__m512)vector);
#else
  for (int lane = 0; lane < count; ++lane) pointer[lane] = vector[lane];
#endif
}
CHARLM_INLINE void store_partial(double* pointer, Vec<double> vector, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_pd(pointer, (__mmask8)((1u << count) - 1), (__m512d)vector);
#else
  for (int lane = 0; lane < count; ++lane) pointer[lane] = vector[lane];
#endif
}

// kWidth lanes, or the last `count` of a row.
template <typename T>
CHARLM_INLINE Vec<T> load_lanes(const T* pointer, int count, T fill) {
  return count == kWidth<T> ? load(pointer) : load_partial(pointer, count, fill);
}
template <typename T>
CHARLM_INLINE void store_lanes(T* pointer, Vec<T> vector, int count) {
  count == kWidth<T> ? store(pointer, vector) : store_partial(pointer, vector, count);
}

// A row one vector at a time: body(column, lanes), lanes == kWidth but for the last.
template <typename T, typename Body>
CHARLM_INLINE void for_each_vector(int64_t columns, const Body& body) {
  int64_t c = 0;
  for (; c + kWidth<T> <= columns; c += kWidth<T>) body(c, kWidth<T>);
  if (c < columns) body(c, (int)(columns - c));
}

// The first `count` lanes; `fill` in the others.
template <typename T>
CHARLM_INLINE Vec<T> lanes_or(Vec<T> vector, int count, T fill) {
  IntVec<T> lane;
  for (int i = 0; i < kWidth<T>; ++i) lane[i] = i;
  return lane < count ? vector : broadcast(fill);
}
template <typename T>
CHARLM_INLINE Vec<T> keep_lanes(Vec<T> vector, int count) {
  return lanes_or<T>(vector, count, 0);
}
template <typename T>
CHARLM_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}
CHARLM_INLINE Vec<float> absolute(Vec<float> a) { return (Vec<float>)((IntVec<float>)a & 0x7fffffff); }
CHARLM_INLINE Vec<double> absolute(Vec<double> a) { return (Vec<double>)((IntVec<double>)a & 0x7fffffffffffffff); }

// vector[index[lane]] in every lane.
CHARLM_INLINE Vec<float> permute(Vec<float> vector, IntVec<float> index) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_permutexvar_ps((__m512i)index, (__m512)vector);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_permutevar8x32_ps((__m256)vector, (__m256i)index);
#else
  Vec<float> result;
  for (int lane = 0; lane < kWidth<float>; ++lane) result[lane] = vector[index[lane]];
  return result;
#endif
}
CHARLM_INLINE Vec<double> permute(Vec<double> vector, IntVec<double> index) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_permutexvar_pd((__m512i)index, (__m512d)vector);
#else
  Vec<double> result;
  for (int lane = 0; lane < kWidth<double>; ++lane) result[lane] = vector[index[lane]];
  return result;
#endif
}

// Sum and maximum over the lanes. Sums are in an order that the instruction set alone decides: AVX-512 adds halves to
// each other until one lane is left, the others add lane by lane.
template <typename T>
CHARLM_INLINE T sum_lanes(Vec<T> vector) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_reduce_add_ps((__m512)vector);
  } else {
    return _mm512_reduce_add_pd((__m512d)vector);
  }
#else
  T total = 0;
  for (int lane = 0; lane < kWidth<T>; ++lane) total += vector[lane];
  return total;
#endif
}

// The sum of each of kWidth vectors, in one vector: a transposition that adds as it goes, not kWidth horizontal sums.
template <typename T>
CHARLM_INLINE Vec<T> sums_of(const Vec<T>* vectors) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __m512 pairs[8], quads[4];
    for (int i = 0; i < 8; ++i) {
      const __m512 a = (__m512)vectors[2 * i], b = (__m512)vectors[2 * i + 1];
      pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; ++i) {
      const __m512d a = (__m512d)pairs[2 * i], b = (__m512d)pairs[2 * i + 1];
      quads[i] = _mm512_add_ps((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b));
    }
    const auto fold = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    return (Vec<T>)fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]));
  }
#endif
  Vec<T> sums;
  for (int i = 0; i < kWidth<T>; ++i) sums[i] = sum_lanes<T>(vectors[i]);
  return sums;
}

template <typename T>
CHARLM_INLINE T maximum_lane(Vec<T> vector) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_reduce_max_ps((__m512)vector);
  } else {
    return _mm512_reduce_max_pd((__m512d)vector);
  }
#else
  T largest = vector[0];
  for (int lane = 1; lane < kWidth<T>; ++lane) largest = vector[lane] > largest ? vector[lane] : largest;
  return largest;
#endif
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
