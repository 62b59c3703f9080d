// Pairs of bfloat16 values as AVX512_BF16 multiplies them: two steps of the inner dimension of a product at a time, in
// each lane, added up in float32.
//
// Built with CHARLM_EMULATE_PAIRS the instructions are written out for processors without them, so that tests can run
// what uses them anywhere.
#pragma once

#include "kernels/cpu/convert.h"
#include "kernels/cpu/transpose.h"

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

CHARLM_INLINE Vec<float> load_panel(const Pair* panel) { return load(reinterpret_cast<const float*>(panel)); }

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
// The first `count` values, which are neighbours, as pairs.
CHARLM_INLINE Vec<float> neighbours(const BFloat16* from, int count) {
  return (Vec<float>)_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), from);
}
template <typename S>
CHARLM_INLINE Vec<float> neighbours(const S* from, int count) {
  constexpr int kLanes = kWidth<float>;
  const HalfVec first = round_to_bfloat16(load_as(from, count < kLanes ? count : kLanes));
  const HalfVec second = count > kLanes ? round_to_bfloat16(load_as(from + kLanes, count - kLanes)) : HalfVec{};
  return (Vec<float>)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)first), (__m256i)second, 1);
}

// As in gemm.h, for pairs; after an odd number of steps the last pair ends in 0.
template <typename S>
__attribute__((noinline)) void pack_transposed(const S* from, int64_t lane_stride, int steps, int64_t lanes,
                                               int64_t width, int count, Pair* out) {
  constexpr int kLanes = kWidth<float>;
  Vec<float> tile[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    tile[i] = i < lanes ? neighbours(from, steps) : Vec<float>{};
    from += lane_stride;
  }
  transpose_spans<1, float>(tile);
  for (int i = 0; i < kLanes; ++i) {
    if (2 * i >= steps) break;
    store_lanes<float>(reinterpret_cast<float*>(out + i * width), tile[i], count);
  }
}

template <typename S>
void pack_panel(const S* from, int64_t depth_stride, int64_t lane_stride, int64_t depth, int64_t lanes, int64_t width,
                Pair* out) {
  constexpr int kLanes = kWidth<float>;
  const auto up_to = [](int64_t left, int most) { return left < most ? left < 0 ? 0 : (int)left : most; };
  if (lane_stride == 1) {
    for (int64_t k = 0; k < depth; k += 2, from += 2 * depth_stride, out += width) {
      for (int64_t lane = 0; lane < width; lane += kLanes) {
        const int count = up_to(lanes - lane, kLanes);
        const IntVec<float> first = bfloat16_lanes(from + lane, count);
        const IntVec<float> second =
            k + 1 < depth ? bfloat16_lanes(from + depth_stride + lane, count) : IntVec<float>{};
        store_lanes<float>(reinterpret_cast<float*>(out + lane), (Vec<float>)(first | second << 16),
                           up_to(width - lane, kLanes));
      }
    }
  } else if (depth_stride == 1) {
    for (int64_t lane = 0; lane < width; lane += kLanes) {
      for (int64_t k = 0; k < depth; k += 2 * kLanes) {
        pack_transposed(from + k + lane * lane_stride, lane_stride, up_to(depth - k, 2 * kLanes), lanes - lane, width,
                        up_to(width - lane, kLanes), out + k / 2 * width + lane);
      }
    }
  } else {
    const auto bits = [&](int64_t k, int64_t lane) -> uint32_t {
      if (k >= depth || lane >= lanes) return 0;
      BFloat16 rounded;
      from_compute(to_compute(from[k * depth_stride + lane * lane_stride]), &rounded);
      return rounded.bits;
    };
    for (int64_t k = 0; k < depth; k += 2, out += width) {
      for (int64_t lane = 0; lane < width; ++lane) out[lane] = {bits(k, lane) | bits(k + 1, lane) << 16};
    }
  }
}

#endif

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
