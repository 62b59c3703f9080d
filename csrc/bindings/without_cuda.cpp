// Compiled in the place of bindings/cuda where CUDA is left out: every op says what to do about a CUDA tensor.
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "bindings/gpu_support.h"

namespace charlm {
namespace {

constexpr const char* kOps[] = {
    "cross_entropy_forward",
    "cross_entropy_backward",
    "embedding_linear_forward",
    "embedding_linear_backward",
    "linear_cross_entropy_forward",
    "linear_cross_entropy_backward",
    "linear_log_probs_forward",
    "linear_log_probs_backward",
    "linear_log_probs_backward_",
    "log_probs_forward",
    "log_probs_backward",
    "mlp_cross_entropy_forward",
    "mlp_cross_entropy_backward",
    "train_steps",
    "train_full_steps",
    "train_population",
    "train_full_population",
    "evaluate_full",
};

constexpr const char* kWhy =
    "charlm was built without kernels for GPUs, so its ops take CPU tensors only: move the tensors to the CPU, or "
    "install charlm again where nvcc is on the PATH; backend 'eager', which is plain PyTorch, works on GPUs too";

void refuse(StableIValue*, uint64_t, uint64_t) { throw std::runtime_error(kWhy); }

}  // namespace

const char* cuda_architectures() { return nullptr; }

std::optional<std::string> why_no_kernels(int) { return kWhy; }

bool trains_in_one_launch(int, const ModelShape&, bool) { return false; }

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  for (const char* op : kOps) ops.impl(op, refuse);
}

}  // namespace charlm
