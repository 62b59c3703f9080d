// Sums of the rows that share a key: the scatter of a gradient into a table, without atomics and in a fixed order.
//
// The sorted keys are cut into tiles of equal length, so that a token that makes up a tenth of the batch is as much
// work for a block as any other. What a tile has of a run of equal keys that it does not share is written at once. The
// two runs that it may share with its neighbours are left as partial sums, and the tile in which such a run begins adds
// these up, tile by tile.
#pragma once

#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/divisor.cuh"
#include "kernels/device_library.h"

namespace charlm::cuda {
namespace {

inline constexpr int kSegmentThreads = 256;
inline constexpr int kSegmentBlocks = 3;  // a multiprocessor at a time: 80 registers a thread, so that none is spilled
inline constexpr int64_t kMinSegment = 32;
inline constexpr int64_t kMaxSegments = 4096;  // which is also how many partial sums the longest run has
inline constexpr int kSegmentAhead = 8;        // rows, or partial sums, whose loads are under way at the same time

// sums[key] = the sum of values[order[i] / per_row] over all i with keys[i] == key; keys below 0 do not count.
template <typename V>
struct SegmentedSum {
  using T = Compute<V>;
  const int32_t* keys;
  const int64_t* order;
  int64_t count, segment;
  const V* values;
  Divisor per_row;
  int64_t columns;
  T* sums;     // (.., columns), zero where a key does not occur
  T* partial;  // (segments, 2, columns): of the run that begins in an earlier tile, and of the one that ends in a later

  __device__ bool same_run(int64_t i, int64_t j) const { return j >= 0 && j < count && keys[i] == keys[j]; }
};

template <typename V>
__global__ void __launch_bounds__(kSegmentThreads, kSegmentBlocks) sum_segments(const SegmentedSum<V> p) {
  using T = Compute<V>;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t begin = tile * p.segment, end = begin + p.segment < p.count ? begin + p.segment : p.count;
  if (begin >= p.count) return;
  const bool begins_earlier = p.same_run(begin, begin - 1), ends_later = p.same_run(end - 1, end);
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < p.columns; c += blockDim.x) {
    T sum = 0;
    int64_t run = begin;  // where the current one began
#pragma unroll 1
    for (int64_t first = begin; first < end; first += kSegmentAhead) {
      const int count = end - first < kSegmentAhead ? static_cast<int>(end - first) : kSegmentAhead;
      int32_t keys[kSegmentAhead + 1];
      int64_t rows[kSegmentAhead];
      T values[kSegmentAhead];
#pragma unroll
      for (int k = 0; k < kSegmentAhead; ++k) {  // beyond the last, the last
        keys[k] = p.keys[first + (k < count ? k : count - 1)];
        rows[k] = p.order[first + (k < count ? k : count - 1)];
      }
      keys[kSegmentAhead] = p.keys[first + kSegmentAhead < end ? first + kSegmentAhead : end - 1];
#pragma unroll
      for (int k = 0; k < kSegmentAhead; ++k) {
        values[k] = to_compute(p.values[p.per_row.quotient(rows[k]) * p.columns + c]);
      }
#pragma unroll
      for (int k = 0; k < kSegmentAhead; ++k) {
        if (k >= count) break;
        sum += values[k];
        const bool last = first + k + 1 == end;
        if (!last && keys[k + 1] == keys[k]) continue;
        if (run == begin && begins_earlier) {
          p.partial[2 * tile * p.columns + c] = sum;
        } else if (last && ends_later) {
          p.partial[(2 * tile + 1) * p.columns + c] = sum;
        } else if (keys[k] >= 0) {
          p.sums[static_cast<int64_t>(keys[k]) * p.columns + c] = sum;
        }
        sum = 0;
        run = first + k + 1;
      }
    }
  }
}

// The last tile that begins with the key of the last row of `tile`: its run reaches into that one. Keys are sorted.
template <typename V>
__device__ inline int64_t last_tile_of_run(const SegmentedSum<V>& p, int64_t tile, int32_t key) {
  const int64_t tiles = (p.count + p.segment - 1) / p.segment;
  for (int64_t last = tile;; last += kSegmentAhead) {
    int in_run = 0;
#pragma unroll
    for (int k = 0; k < kSegmentAhead; ++k) {
      const int64_t other = last + 1 + k;
      in_run += (p.keys[(other < tiles ? other : tile) * p.segment] == key) & (other < tiles);
    }
    if (in_run < kSegmentAhead) return last + in_run;
  }
}

template <typename V>
__global__ void __launch_bounds__(kSegmentThreads, kSegmentBlocks) join_segments(const SegmentedSum<V> p) {
  using T = Compute<V>;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t begin = tile * p.segment, end = begin + p.segment;
  if (end >= p.count || !p.same_run(end - 1, end)) return;
  if (p.same_run(end - 1, begin) && p.same_run(begin, begin - 1)) return;  // begins in an earlier tile
  const int64_t key = p.keys[end - 1];
  if (key < 0) return;
  const int64_t last = last_tile_of_run(p, tile, p.keys[end - 1]);
  for (int64_t c = threadIdx.x; c < p.columns; c += blockDim.x) {
    T sum = p.partial[(2 * tile + 1) * p.columns + c];
#pragma unroll 1
    for (int64_t first = tile + 1; first <= last; first += kSegmentAhead) {
      T parts[kSegmentAhead];
#pragma unroll
      for (int k = 0; k < kSegmentAhead; ++k) {
        parts[k] = p.partial[2 * (first + k < last ? first + k : last) * p.columns + c];
      }
#pragma unroll
      for (int k = 0; k < kSegmentAhead; ++k) {
        if (first + k <= last) sum += parts[k];
      }
    }
    p.sums[key * p.columns + c] = sum;
  }
}

// sums (rows, columns) from `keys` (count,), in any order, of the rows order[i] / per_row of `values`.
template <typename V>
Error segmented_sum(const int32_t* keys, int64_t count, const V* values, int64_t per_row, int64_t columns,
                    Compute<V>* sums, int64_t rows, DeviceLibrary& library, Stream stream) {
  if (const Error error = clear(sums, rows * columns, stream)) return error;
  if (count == 0 || columns == 0) return cudaSuccess;
  const DeviceLibrary::Sorted sorted = library.sort(keys, count);
  const int64_t even = (count + kMaxSegments - 1) / kMaxSegments;
  SegmentedSum<V> problem{sorted.keys, sorted.order,     count,   even < kMinSegment ? kMinSegment : even,
                          values,      Divisor(per_row), columns, sums,
                          nullptr};
  const int64_t segments = (count + problem.segment - 1) / problem.segment;
  problem.partial = library.allocate_values<Compute<V>>(2 * segments * columns);
  const int64_t x = columns > kSegmentThreads ? kSegmentThreads : columns;
  const dim3 threads(static_cast<unsigned>(x), static_cast<unsigned>(kSegmentThreads / x));
  const int64_t blocks = (segments + threads.y - 1) / threads.y;
  if (const Error error = launch(sum_segments<V>, blocks, threads, 0, stream, problem)) return error;
  return launch(join_segments<V>, blocks, threads, 0, stream, problem);
}

}  // namespace
}  // namespace charlm::cuda
