// Pairs of bfloat16 values as AVX512_BF16 multiplies them: two steps of the inner dimension of a product at a time, in
// each lane, added up in float32.
//
// Built with CHARLM_EMULATE_PAIRS the instructions are written out for processors without them, so that tests can run
// what uses them anywhere.
#pragma once

#include "kernels/cpu/convert.h"

#if defined(__AVX512BF16__) || defined(CHARLM_EMULATE_PAIRS)
#define CHARLM_HAS_PAIRS 1
#else
#define CHARLM_HAS_PAIRS 0
#endif

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// The first value in the lower half. Vectors of pairs travel as vectors of floats.
struct Pair {
  uint32_t bits;
};

#if CHARLM_HAS_PAIRS

// sum + a_1 b_1 + a_0 b_0 in each lane; the instruction takes denormal numbers for 0.
CHARLM_INLINE Vec<float> multiply_add(Vec<float> sum, Pair a, Vec<float> b) {
#if defined(__AVX512BF16__)
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a.bits), (__m512bh)b);
#else
  const IntVec<float> pairs = (IntVec<float>)b;
  sum = sum + bits_to_float(a.bits & 0xffff0000u) * (Vec<float>)(pairs & (int)0xffff0000);
  return sum + bits_to_float(a.bits << 16) * (Vec<float>)(pairs << 16);
#endif
}

// The bits of the first `count` values, in the lower half of each lane.
CHARLM_INLINE IntVec<float> bfloat16_lanes(const BFloat16* from, int count) {
  return (IntVec<float>)widened(load_halves(from, count));
}
template <typename S>
CHARLM_INLINE IntVec<float> bfloat16_lanes(const S* from, int count) {
  return (IntVec<float>)widened(round_to_bfloat16(load_as(from, count)));
}

// What gemm.h packs of values, of pairs: after an odd number of steps the last pair ends in 0.
CHARLM_INLINE Vec<float> along(Pair, const BFloat16* from, int count) {
  return (Vec<float>)_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), from);
}
template <typename S>
CHARLM_INLINE Vec<float> along(Pair, const S* from, int count) {
  constexpr int kLanes = kWidth<float>;
  const HalfVec first = round_to_bfloat16(load_as(from, count < kLanes ? count : kLanes));
  const HalfVec second = count > kLanes ? round_to_bfloat16(load_as(from + kLanes, count - kLanes)) : HalfVec{};
  return (Vec<float>)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)first), (__m256i)second, 1);
}
template <typename S>
CHARLM_INLINE Vec<float> across(Pair, const S* from, int64_t depth_stride, int64_t steps, int count) {
  const IntVec<float> first = bfloat16_lanes(from, count);
  const IntVec<float> second = steps > 1 ? bfloat16_lanes(from + depth_stride, count) : IntVec<float>{};
  return (Vec<float>)(first | second << 16);
}
template <typename S>
CHARLM_INLINE Pair single(Pair, const S* from, int64_t depth_stride, int64_t steps) {
  BFloat16 first, second = {};
  from_compute(to_compute(from[0]), &first);
  if (steps > 1) from_compute(to_compute(from[depth_stride]), &second);
  return {first.bits | (uint32_t)second.bits << 16};
}

#endif

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
