// What this build has for GPUs, and whether that runs on the one at hand. It is defined beside what registers the ops
// for CUDA, and beside what does so in its place: in cuda/gpu_support.cpp and without_cuda.cpp.
#pragma once

#include <optional>
#include <string>

#include "kernels/model_shape.h"

namespace charlm {

// The GPUs that there are kernels for, "sm_80 sm_90"; null where the ops for CUDA are not registered.
const char* cuda_architectures();

// Why kernels cannot run on a CUDA device, and what to do, in one sentence; none where they can.
std::optional<std::string> why_no_kernels(int device);

// Whether a CUDA device trains models of this shape in one launch of many steps: whether they fit into a block of
// threads, or a cluster of blocks.
bool trains_in_one_launch(int device, const ModelShape& shape, bool is_float64);

}  // namespace charlm
