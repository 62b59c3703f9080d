#include <cuda_runtime.h>

#include "kernels/device.h"

namespace charlm::cuda {
namespace {

// Compiled for what all kernels are compiled for.
__global__ void nothing() {}

Obstacle obstacle_of(Error error) {
  switch (error) {
    case cudaSuccess:
      return Obstacle::kNone;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return Obstacle::kNoCode;
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidKernelImage:  // how the code is compressed, it does not know
      return Obstacle::kOldDriver;
    case cudaErrorUnsupportedPtxVersion:
      return Obstacle::kOldCompiler;
    default:
      return Obstacle::kOther;
  }
}

Error load_kernel(int index) {
  if (const Error error = cudaSetDevice(index)) return error;
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, nothing);
}

}  // namespace

Error use_device(int index) { return cudaSetDevice(index); }

const char* error_message(Error error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

DeviceProbe probe_device(int index) {
  // While a thread captures a graph, CUDA lets others load code only where they say that they do not mind.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  DeviceProbe probe;
  cudaDriverGetVersion(&probe.driver);
  cudaRuntimeGetVersion(&probe.runtime);
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) == cudaSuccess) {
    probe.capability = 10 * major + minor;
  }
  probe.error = load_kernel(index);
  probe.obstacle = obstacle_of(probe.error);
  return probe;
}

}  // namespace charlm::cuda
