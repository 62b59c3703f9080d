#include "bindings/cuda/torch_library.h"
#include "bindings/log_probs_arguments.h"

namespace charlm {
namespace {

LogProbsResults forward(const Tensor input, const Tensor ids, int64_t ignore_index, double temperature,
                        double softcap) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  const DeviceCall device("input", input);
  const Logits logits = read_logits(input);
  return dispatch_compute_type(input, [&](auto type) {
    LogProbs<decltype(type)> problem;
    Tensor holder = ids;
    set_ids(ids, input, input.size(input.dim() - 1), options, &holder, &problem);
    check_class_count(problem.classes);
    problem.input = logits.rows;
    const LogProbsResults results = allocate_results(ids, input, &problem);
    device.check(cuda::log_probs(problem, device.stream()));
    return results;
  });
}

Tensor backward(const OptionalTensor log_probs_gradient, const OptionalTensor entropy_gradient,
                const OptionalTensor logsumexp_gradient, const Tensor input, const Tensor ids, const Tensor kept,
                int64_t ignore_index, double temperature, double softcap) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  const DeviceCall device("input", input);
  const Logits logits = read_logits(input), gradient = empty_logits(input);
  dispatch_compute_type(input, [&](auto type) {
    LogProbs<decltype(type)> problem;
    Tensor holder = ids;
    set_ids(ids, input, input.size(input.dim() - 1), options, &holder, &problem);
    check_class_count(problem.classes);
    check_same_device("kept", kept, "input", input);
    set_kept(kept, &problem);
    const auto upstream = set_upstream(log_probs_gradient, entropy_gradient, logsumexp_gradient, input, &problem);
    problem.input = logits.rows;
    problem.input_gradient = gradient.rows;
    TorchLibrary library(device);
    device.check(cuda::log_probs_gradient(problem, library, device.stream()));
  });
  return gradient.tensor;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("log_probs_forward", TORCH_BOX(&forward));
  ops.impl("log_probs_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
