// The output of a tile of rows when a model trains: each row's loss, and the gradient of its logits in their place.
#pragma once

#include "kernels/cuda/block_products.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/train_tiles.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kRowLanes = 8;  // that share a row, each with every 8th strip of classes

// A matrix with the rows of a tile.
inline constexpr int kRowPitch = pitch_of(kTileRows);

// e^x for x <= 0. That of 0 is 1, exactly.
__device__ inline float exponential(float x) { return approximate_exp2(x * 1.4426950408889634f); }
__device__ inline double exponential(double x) { return exp(x); }

template <typename T, typename Combine>
__device__ inline T over_row_lanes(T value, const Combine& combine) {
#pragma unroll
  for (int offset = kRowLanes / 2; offset > 0; offset /= 2) value = combine(value, from_lane_xor(value, offset));
  return value;
}

// A row of logits, with their soft cap; what fills up the last strip is kLowest. All lanes of the warp take part.
// Returns what the row adds to the loss.
template <typename T>
__device__ inline T softmax_row(const Tiles<T>& tiles, const TileRecord& record, int row, int strips, T softcap,
                                T* matrix) {
  const int lane = thread_in_block() % kRowLanes, begin = record.entry_begin(row), end = record.entry_begin(row + 1);
  const int* targets = tiles.targets_of(record);
  T* const logits = vector_at(matrix, row);
  const auto at = [&](int strip) { return vector_at(logits, kRowPitch, strip, 0); };
  T largest = kLowest<T>;
#pragma unroll 1
  for (int strip = lane; strip < strips; strip += kRowLanes) {
    const Four<T> z = load_four(at(strip));
#pragma unroll
    for (int j = 0; j < kTile; ++j) largest = larger(largest, z.values[j]);
  }
  largest = over_row_lanes(largest, [](T a, T b) { return larger(a, b); });
  T sum = 0;
#pragma unroll 1
  for (int strip = lane; strip < strips; strip += kRowLanes) {
    const Four<T> z = load_four(at(strip));
#pragma unroll
    for (int j = 0; j < kTile; ++j) sum += exponential(z.values[j] - largest);
  }
  sum = over_row_lanes(sum, [](T a, T b) { return a + b; });
  T total = 0, loss = 0;
#pragma unroll 1
  for (int entry = begin; entry < end; ++entry) {
    total += targets[entry] != kBad ? tiles.entry_weight(entry) : not_a_number<T>();
  }
  const T factor = total / sum, log_sum = log(sum);
#pragma unroll 1
  for (int strip = lane; strip < strips; strip += kRowLanes) {
    const Four<T> z = load_four(at(strip));
    Four<T> gradient;
#pragma unroll
    for (int j = 0; j < kTile; ++j) gradient.values[j] = factor * exponential(z.values[j] - largest);
#pragma unroll 1
    for (int entry = begin; entry < end; ++entry) {
      const int j_of_target = targets[entry] - strip * kTile;
      if (j_of_target < 0 || j_of_target >= kTile) continue;
      const T weight = tiles.entry_weight(entry);
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        const T w = j == j_of_target ? weight : T(0);
        gradient.values[j] -= w;
        loss += w * (log_sum - (z.values[j] - largest));
      }
    }
    if (softcap != 0) {
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        const T ratio = z.values[j] / softcap, g = gradient.values[j];
        gradient.values[j] = g == 0 ? g : g * (1 - ratio * ratio);  // 0 where there is no class
      }
    }
    store_four(at(strip), gradient);
  }
  loss = over_row_lanes(loss, [](T a, T b) { return a + b; });
  return total == total ? loss : total;
}

// The loss of a tile, in thread 0; the first warp takes part. Rows beyond the last have none.
template <typename T>
__device__ inline T sum_row_losses(const T* losses, int rows) {
  const int lane = thread_in_block();
  return warp_sum(lane < rows ? losses[lane] : T(0));
}

}  // namespace
}  // namespace charlm::cuda
