// The group of threads that walks over a row of classes: how many there are, and what they say to one another. block.x
// are the threads of a group, a power of two, block.y the rows of a block.
#pragma once

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/row_pieces.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kMaxThreads = 512;
inline constexpr int kWideThreads = 256;  // of a block, where a row takes fewer

// Each thread has as many vectors as are under way at once, or several times so many: that saves merging. Fewer than
// eight threads side by side would read no whole line of a cache, and all together have to fill a large GPU.
inline int threads_for_vectors(int64_t rows, int64_t vectors) {
  constexpr int64_t kLine = 8, kEnough = 1 << 18, kMost = 8 * kVectorsAhead;
  int threads = 1;
  while (threads < kMaxThreads && vectors > threads * kVectorsAhead &&
         (threads < kLine || vectors > threads * kMost || rows * threads < kEnough)) {
    threads *= 2;
  }
  return threads;
}

// Adjacent rows of strided classes are read together, a thread each.
inline int threads_for_scalars(int64_t rows, int64_t classes) {
  int64_t most = classes <= 64 || rows >= 16384 ? 1 : kWideThreads;
  if (classes < 8 * most) most = classes / 8;
  int threads = 1;
  while (2 * threads <= most) threads *= 2;
  return threads;
}

// Orders the accesses of the threads of a group. All threads of the block take part.
__device__ inline void group_barrier() {
  if (blockDim.x <= kWarp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// What the threads of each group have, merged, in every one of them. merge(a, b) is merge(b, a) to the bit, so that
// they all have the same; from_lane_xor gives a part of another lane. `shared` is not to be written again before a
// barrier.
template <typename Part, typename Merge>
__device__ inline Part merge_over_group(Part part, Part (&shared)[kWarp], const Merge& merge) {
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int offset = (threads < kWarp ? threads : kWarp) / 2; offset > 0; offset /= 2) {
    part = merge(part, from_lane_xor(part, offset));
  }
  if (threads <= kWarp) return part;
  const int lane = thread_in_block() % kWarp, warp = thread_in_block() / kWarp, warps = threads / kWarp;
  if (lane == 0) shared[warp] = part;
  __syncthreads();
  part = shared[static_cast<int>(threadIdx.y) * warps + lane % warps];
#pragma unroll 1
  for (int offset = warps / 2; offset > 0; offset /= 2) part = merge(part, from_lane_xor(part, offset));
  return part;
}

}  // namespace
}  // namespace charlm::cuda
