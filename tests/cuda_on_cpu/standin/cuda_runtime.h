// Stands in for CUDA's header of this name, so that g++ compiles a .cu file for the CPU and tests can run it.
//
// One block at a time, its threads are fibers that threads.cpp runs in random order, from one synchronisation to the
// next. Only what kernels use is here; a kernel that needs more of CUDA adds it, with its rules, here or in
// simulator.h.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmath>
#include <tuple>
#include <utility>

#include "gpus.h"
#include "simulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __grid_constant__
#define __launch_bounds__(...)
// Where zero-initialised variables go, by which the simulator knows it. Kernels have no others.
#define __shared__ static

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 gridDim, blockDim, blockIdx, threadIdx;
inline constexpr int warpSize = simulator::kWarp;

// Launches run at once, to their end.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidKernelImage = 200,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorLaunchFailure = 719,
};
enum cudaLaunchAttributeID : int { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  if (const int error = simulator::code_error(*simulator::gpu(simulator::current_gpu()))) {
    return static_cast<cudaError_t>(error);
  }
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  const auto run = [](const void* data) {
    const Call& call = *static_cast<const Call*>(data);
    std::apply(call.kernel, call.arguments);
  };
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  switch (simulator::launch(reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim, cluster,
                            config->dynamicSmemBytes, config->stream, run, &call, sizeof(call))) {
    case simulator::Outcome::kDone:
      return cudaSuccess;
    case simulator::Outcome::kRefused:
      return cudaErrorInvalidValue;
    default:
      return cudaErrorLaunchFailure;
  }
}
enum cudaFuncAttribute : int { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  const bool granted = simulator::ask_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return granted ? cudaSuccess : cudaErrorInvalidValue;
}
// As many as threads and shared memory have room for; what a kernel has of static shared memory, and of registers, is
// not known here.
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads, size_t bytes) {
  *blocks = simulator::blocks_at_once(reinterpret_cast<const void*>(kernel), threads, bytes);
  return cudaSuccess;
}
// Whether the runtime can talk to a GPU.
inline cudaError_t device_error(int device) {
  const simulator::Gpu* gpu = simulator::gpu(device);
  if (gpu == nullptr) return cudaErrorInvalidDevice;
  return gpu->driver / 1000 < simulator::kRuntime / 1000 ? cudaErrorInsufficientDriver : cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t error = device_error(device)) return error;
  return simulator::current_gpu() = device, cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = simulator::current_gpu(), cudaSuccess; }
enum cudaDeviceAttr : int {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (const cudaError_t error = device_error(device)) return error;
  const simulator::Gpu& gpu = *simulator::gpu(device);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = gpu.capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = gpu.capability % 10, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = gpu.shared_bytes, cudaSuccess;
    default:
      return *value = gpu.multiprocessors, cudaSuccess;
  }
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure:
      return simulator::fault_message();
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    default:
      return "invalid argument";
  }
}

// Of the driver of the GPU that the tensors are on: a machine has one for all of its GPUs.
inline cudaError_t cudaDriverGetVersion(int* version) {
  return *version = simulator::gpu(simulator::gpu_of_tensors())->driver, cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = simulator::kRuntime, cudaSuccess; }
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return static_cast<cudaError_t>(simulator::code_error(*simulator::gpu(simulator::current_gpu())));
}
enum cudaStreamCaptureMode : int { cudaStreamCaptureModeRelaxed = 2 };
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// Synchronisation. The line tells places apart, as all threads must wait at the same one.
inline void __syncthreads(int line = __builtin_LINE()) { simulator::block_barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  simulator::warp_barrier(mask, line);
}

// Exchanges between the lanes of a warp. They do not order accesses to memory, as __syncwarp does.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, int line = __builtin_LINE()) {
  const int lane = simulator::lane();
  return simulator::exchange(mask, value, lane / width * width + source % width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset, int width = warpSize, int line = __builtin_LINE()) {
  const int lane = simulator::lane(), source = lane ^ offset;
  return simulator::exchange(mask, value, source / width == lane / width ? source : lane, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int offset, int width = warpSize, int line = __builtin_LINE()) {
  const int lane = simulator::lane(), source = lane + offset;
  return simulator::exchange(mask, value, source / width == lane / width ? source : lane, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int offset, int width = warpSize, int line = __builtin_LINE()) {
  const int lane = simulator::lane(), source = lane - offset;
  return simulator::exchange(mask, value, source >= lane / width * width ? source : lane, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simulator::vote(mask, predicate != 0, line);
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simulator::vote(mask, predicate != 0, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return simulator::vote(mask, predicate != 0, line) == mask;
}

// Fibers switch at synchronisations only, so a plain update is atomic.
template <typename T>
T atomicAdd(T* address, T value) {
  const simulator::Atomic atomic;
  const T before = *address;
  *address = before + value;
  return before;
}
template <typename T>
T atomicMax(T* address, T value) {
  const simulator::Atomic atomic;
  const T before = *address;
  if (before < value) *address = value;
  return before;
}

// Copies that a thread need not wait for: here they are made when it waits for them, and no thread sees them before.
namespace simulator {
inline void copy_async(uint4* to, const uint4* from) { defer_copy(to, from); }
inline void wait_for_copies() {
  void* to;
  const void* from;
  while (take_copy(&to, &from)) *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
}  // namespace simulator

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// CUDA has these in the global namespace, for both types.
using std::erf;
using std::exp;
using std::exp2;
using std::log;
using std::sqrt;
using std::tanh;
