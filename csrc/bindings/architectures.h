// What this build has for GPUs.
#pragma once

namespace charlm {

// The GPUs that there are kernels for, "sm_80 sm_90"; null where the ops for CUDA are not registered. It is defined
// beside what registers them, and beside what does so in its place: in cuda/architectures.cpp and without_cuda.cpp.
const char* cuda_architectures();

}  // namespace charlm
