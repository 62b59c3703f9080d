// Clusters: blocks that run at the same time and reach each other's shared memory, from sm_90 on. Elsewhere, and where
// a launch asks for none, a block is a cluster by itself.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace charlm::cuda {

inline constexpr int kClusterCapability = 9;  // the first major compute capability that has clusters

#if defined(__CUDACC__)
// The number of a block in its cluster.
__device__ inline int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
// The same place in the shared memory of another block of the cluster.
__device__ inline void* in_block(void* shared, int rank) {
#if __CUDA_ARCH__ >= 900
  void* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
#else
  return shared;
#endif
}
// For all threads of all blocks of the cluster; orders their accesses.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
#else
using simulator::cluster_barrier;  // tests/cuda_on_cpu
using simulator::cluster_rank;
using simulator::in_block;
#endif

}  // namespace charlm::cuda
