#include "kernels/linear_log_probs.h"

#include "bindings/linear_log_probs_arguments.h"

namespace charlm {
namespace {

template <typename T>
cpu::LinearLogProbs<T> problem_of(const LinearLogProbsArguments<T>& arguments) {
  return {.layer = {.input = arguments.input_rows,
                    .weight = arguments.weight,
                    .bias = static_cast<const T*>(arguments.bias_values())},
          .log_probs = arguments.log_probs};
}

LogProbsResults forward(const Tensor input, const Tensor linear_weight, const Tensor ids,
                        const OptionalTensor linear_bias, int64_t ignore_index, double temperature, double softcap) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  return dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    const auto arguments =
        read_linear_log_probs_arguments<T>(input, linear_weight, ids, linear_bias, options, kDtype<T>);
    check_on_cpu("ids", ids);
    check_ids(arguments.log_probs, ids.sizes());
    cpu::LinearLogProbs<T> problem = problem_of(arguments);
    const LogProbsResults results = allocate_results(ids, input, &problem.log_probs);
    cpu::linear_log_probs(problem);
    return results;
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
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(type);
    const auto arguments =
        read_linear_log_probs_arguments<T>(input, linear_weight, ids, linear_bias, options, kDtype<T>);
    check_on_cpu("ids", ids);
    check_ids(arguments.log_probs, ids.sizes());
    cpu::LinearLogProbs<T> problem = problem_of(arguments);
    set_kept(kept, &problem.log_probs);
    const auto upstream =
        set_upstream(log_probs_gradient, entropy_gradient, logsumexp_gradient, input, &problem.log_probs);
    const Tensor of_input = allocate_gradient(input.sizes(), input_gradient, &problem.layer.input_gradient);
    const Tensor of_weight = allocate_gradient(linear_weight.sizes(), weight_gradient, &problem.layer.weight_gradient);
    const Tensor of_bias = allocate_gradient({linear_weight.size(0)}, bias_gradient, &problem.layer.bias_gradient);
    cpu::linear_log_probs_gradient(problem);
    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, input.scalar_type()); };
    return {stored(of_input), stored(of_weight), stored(of_bias)};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("linear_log_probs_forward", TORCH_BOX(&forward));
  ops.impl("linear_log_probs_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
