// Copies of 16 bytes from device memory to shared memory that take no register and no waiting. GPUs before sm_80 make
// them at once.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace charlm::cuda {

#if defined(__CUDACC__)
__device__ inline void copy_async(uint4* to, const uint4* from) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  *to = *from;
#endif
}

// Until all copies of this thread have been made. Other threads see them after a barrier.
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
#else
using simulator::copy_async;  // tests/cuda_on_cpu
using simulator::wait_for_copies;
#endif

}  // namespace charlm::cuda
