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

// What the current device has.
struct DeviceLimits {
  int capability = 0;  // of computing, the major number
  int multiprocessors = 0;
  int block_shared_bytes = 0;  // of shared memory, at most, for a block that asks for it

  static Error read(DeviceLimits* limits) {
    int device = 0;
    if (const Error error = cudaGetDevice(&device)) return error;
    if (const Error error = cudaDeviceGetAttribute(&limits->capability, cudaDevAttrComputeCapabilityMajor, device)) {
      return error;
    }
    if (const Error error = cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
      return error;
    }
    return cudaDeviceGetAttribute(&limits->block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
};

// A block has more shared memory than this only where its kernel has asked for it.
inline constexpr int64_t kUnaskedSharedBytes = 48 << 10;

template <typename... Parameters>
Error allow_shared(void (*kernel)(Parameters...), int64_t shared_bytes) {
  if (shared_bytes <= kUnaskedSharedBytes) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
}

// How many blocks of a kernel a multiprocessor runs at the same time: its registers count as well as shared memory.
template <typename... Parameters>
Error blocks_at_once(void (*kernel)(Parameters...), int threads, int64_t shared_bytes, int* blocks) {
  if (const Error error = allow_shared(kernel, shared_bytes)) return error;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, static_cast<size_t>(shared_bytes));
}

// Enqueues kernel(arguments...) with so many blocks in a cluster; blocks = 0 launches nothing, which CUDA itself would
// refuse.
template <typename... Parameters, typename... Arguments>
Error launch_in_clusters(void (*kernel)(Parameters...), int cluster, int64_t blocks, dim3 threads, int64_t shared_bytes,
                         Stream stream, const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (const Error error = allow_shared(kernel, shared_bytes)) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;  // GPUs without clusters know no such attribute
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
template <typename... Parameters, typename... Arguments>
Error launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, int64_t shared_bytes, Stream stream,
             const Arguments&... arguments) {
  return launch_in_clusters(kernel, 1, blocks, threads, shared_bytes, stream, arguments...);
}

}  // namespace charlm::cuda
