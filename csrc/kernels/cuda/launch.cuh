// Launches, and the shared memory whose size a launch decides. Only what tests/cuda_on_cpu can simulate is used.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/device.h"

namespace charlm::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

#if defined(__CUDACC__)
extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
__device__ inline unsigned char* dynamic_shared() { return dynamic_shared_memory; }
#else
using simulator::dynamic_shared;  // tests/cuda_on_cpu
#endif

// Enqueues kernel(arguments...); blocks = 0 launches nothing, which CUDA itself would refuse.
template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, int64_t shared_bytes, Stream stream,
             const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace charlm::cuda
