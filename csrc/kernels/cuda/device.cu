#include <cuda_runtime.h>

#include "kernels/device.h"

namespace charlm::cuda {

Error use_device(int index) { return cudaSetDevice(index); }

const char* error_message(Error error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace charlm::cuda
