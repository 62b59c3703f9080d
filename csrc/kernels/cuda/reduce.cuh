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

// The sum over the block, in its thread 0. `scratch` has kWarp values of shared memory, which are not to be written
// again before a barrier.
template <typename T>
__device__ inline T block_sum(T value, T* scratch) {
  const int warp = thread_in_block() / kWarp, lane = thread_in_block() % kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warp == 0 ? warp_sum(lane < threads_of_block() / kWarp ? scratch[lane] : T(0)) : value;
}

// Two of them at once, where `scratch` has 2 * kWarp values.
template <typename T>
__device__ inline void block_sums(T* first, T* second, T* scratch) {
  const int warp = thread_in_block() / kWarp, lane = thread_in_block() % kWarp;
  *first = warp_sum(*first);
  *second = warp_sum(*second);
  if (lane == 0) {
    scratch[warp] = *first;
    scratch[kWarp + warp] = *second;
  }
  __syncthreads();
  if (warp != 0) return;
  const bool has_warp = lane < threads_of_block() / kWarp;
  *first = warp_sum(has_warp ? scratch[lane] : T(0));
  *second = warp_sum(has_warp ? scratch[kWarp + lane] : T(0));
}

}  // namespace charlm::cuda
