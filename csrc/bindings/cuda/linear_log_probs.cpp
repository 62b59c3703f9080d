#include "kernels/linear_log_probs.h"

#include "bindings/cuda/torch_library.h"
#include "bindings/linear_log_probs_arguments.h"

namespace charlm {
namespace {

template <typename T>
cuda::LinearLogProbs<T> problem_of(const LinearLogProbsArguments<T>& arguments) {
  check_class_count(arguments.log_probs.classes);
  return {.layer = {.input = arguments.input_rows, .weight = arguments.weight, .bias = arguments.bias_values()},
          .log_probs = arguments.log_probs};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor input,
                                                                           const Tensor linear_weight, const Tensor ids,
                                                                           const OptionalTensor linear_bias,
                                                                           int64_t ignore_index, double temperature,
                                                                           double softcap, bool) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  const DeviceCall device("input", input);
  return dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    const auto arguments =
        read_linear_log_probs_arguments<T>(input, linear_weight, ids, linear_bias, options, input.scalar_type());
    cuda::LinearLogProbs<T> problem = problem_of(arguments);
    const LogProbsResults results = allocate_results(ids, input, &problem.log_probs);
    TorchLibrary library(device);
    device.check(cuda::linear_log_probs(problem, library, device.stream()));
    return std::tuple_cat(results, std::make_tuple(allocate({0}, input.scalar_type(), device.device)));
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const OptionalTensor log_probs_gradient,
                                            const OptionalTensor entropy_gradient,
                                            const OptionalTensor logsumexp_gradient, const Tensor input,
                                            const Tensor linear_weight, const Tensor ids,
                                            const OptionalTensor linear_bias, const Tensor kept, int64_t ignore_index,
                                            double temperature, double softcap, bool input_gradient,
                                            bool weight_gradient, bool bias_gradient) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  const DeviceCall device("input", input);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(type);
    const auto arguments =
        read_linear_log_probs_arguments<T>(input, linear_weight, ids, linear_bias, options, input.scalar_type());
    cuda::LinearLogProbs<T> problem = problem_of(arguments);
    check_same_device("kept", kept, "input", input);
    set_kept(kept, &problem.log_probs);
    const auto upstream =
        set_upstream(log_probs_gradient, entropy_gradient, logsumexp_gradient, input, &problem.log_probs);
    const auto gradient = [&](Shape sizes, bool wanted, void** data) {
      const Tensor tensor = allocate(wanted ? sizes : Shape({0}), input.scalar_type(), device.device);
      *data = wanted ? tensor.mutable_data_ptr() : nullptr;
      return tensor;
    };
    const Tensor of_input = gradient(input.sizes(), input_gradient, &problem.layer.input_gradient);
    const Tensor of_weight = gradient(linear_weight.sizes(), weight_gradient, &problem.layer.weight_gradient);
    const Tensor of_bias = gradient({linear_weight.size(0)}, bias_gradient, &problem.layer.bias_gradient);
    TorchLibrary library(device);
    device.check(cuda::linear_log_probs_gradient(problem, library, device.stream()));
    return {of_input, of_weight, of_bias};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("linear_log_probs_forward", TORCH_BOX(&forward));
  ops.impl("linear_log_probs_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
