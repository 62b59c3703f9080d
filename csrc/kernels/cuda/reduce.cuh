// Sums over the threads of a warp or a block, in an order that its size alone decides.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace charlm::cuda {

__device__ inline int thread_in_block() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }
__device__ inline int threads_of_block() { return static_cast<int>(blockDim.x * blockDim.y); }

template <typename T>
__device__ inline T from_lane_xor(T value, int offset) {
  return __shfl_xor_sync(kFullWarp, value, offset);
}

template <typename T>
__device__ inline T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += from_lane_xor(value, offset);
  return value;
}

// Replaces values by their sums over the block, in its thread 0. `scratch` has kCount * kWarp values of shared memory,
// which are not to be written again before a barrier.
template <int kCount, typename T>
__device__ inline void block_sums(T (&values)[kCount], T* scratch) {
  const int warp = thread_in_block() / kWarp, lane = thread_in_block() % kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sum(values[i]);
    if (lane == 0) scratch[i * kWarp + warp] = values[i];
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sum(lane < threads_of_block() / kWarp ? scratch[i * kWarp + lane] : T(0));
  }
}
template <typename T>
__device__ inline T block_sum(T value, T* scratch) {
  T values[] = {value};
  block_sums(values, scratch);
  return values[0];
}

}  // namespace charlm::cuda
