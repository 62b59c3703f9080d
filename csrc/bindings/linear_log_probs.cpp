#include "kernels/linear_log_probs.h"

#include "bindings/branches.h"
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor input,
                                                                           const Tensor linear_weight, const Tensor ids,
                                                                           const OptionalTensor linear_bias,
                                                                           int64_t ignore_index, double temperature,
                                                                           double softcap, bool keeps_logits) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  return dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    const auto arguments =
        read_linear_log_probs_arguments<T>(input, linear_weight, ids, linear_bias, options, kDtype<T>);
    check_on_cpu("ids", ids);
    check_ids(arguments.log_probs, ids.sizes());
    cpu::LinearLogProbs<T> problem = problem_of(arguments);
    const LogProbsResults results = allocate_results(ids, input, &problem.log_probs);
    const Tensor logits = allocate(keeps_logits ? linear_weight.sizes() : Shape({0}), input.scalar_type());
    if (keeps_logits) problem.logits = matrix_of(logits);
    took_branch(keeps_logits ? "linear_log_probs_forward/keeps_logits" : "linear_log_probs_forward/pieces");
    cpu::linear_log_probs(problem);
    return std::tuple_cat(results, std::make_tuple(logits));
  });
}

// What both kinds of backward make of their arguments.
template <typename T>
struct Backward {
  const LinearLogProbsArguments<T> arguments;
  cpu::LinearLogProbs<T> problem;
  const LogProbsUpstream upstream;
  const Tensor of_input, of_bias;

  Backward(const OptionalTensor& log_probs_gradient, const OptionalTensor& entropy_gradient,
           const OptionalTensor& logsumexp_gradient, const Tensor& input, const Tensor& linear_weight,
           const Tensor& ids, const OptionalTensor& linear_bias, const Tensor& kept, const LogProbsOptions& options,
           bool wants_input, bool wants_bias)
      : arguments(read_linear_log_probs_arguments<T>(input, linear_weight, ids, linear_bias, options, kDtype<T>)),
        problem(problem_of(arguments)),
        upstream(set_upstream(log_probs_gradient, entropy_gradient, logsumexp_gradient, input, &problem.log_probs)),
        of_input(allocate_gradient(input.sizes(), wants_input, &problem.layer.input_gradient)),
        of_bias(allocate_gradient({linear_weight.size(0)}, wants_bias, &problem.layer.bias_gradient)) {
    check_on_cpu("ids", ids);
    check_ids(problem.log_probs, ids.sizes());
    set_kept(kept, &problem.log_probs);
  }
};

std::tuple<Tensor, Tensor, Tensor> backward(const OptionalTensor log_probs_gradient,
                                            const OptionalTensor entropy_gradient,
                                            const OptionalTensor logsumexp_gradient, const Tensor input,
                                            const Tensor linear_weight, const Tensor ids,
                                            const OptionalTensor linear_bias, const Tensor kept, int64_t ignore_index,
                                            double temperature, double softcap, bool input_gradient,
                                            bool weight_gradient, bool bias_gradient) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    Backward<decltype(type)> call(log_probs_gradient, entropy_gradient, logsumexp_gradient, input, linear_weight, ids,
                                  linear_bias, kept, options, input_gradient, bias_gradient);
    const Tensor of_weight = allocate(weight_gradient ? linear_weight.sizes() : Shape({0}), input.scalar_type());
    if (weight_gradient) call.problem.weight_gradient = matrix_of(of_weight);
    took_branch("linear_log_probs_backward/pieces");
    cpu::linear_log_probs_gradient(call.problem);
    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, input.scalar_type()); };
    return {stored(call.of_input), of_weight, stored(call.of_bias)};
  });
}

std::tuple<Tensor, Tensor> backward_(const OptionalTensor log_probs_gradient, const OptionalTensor entropy_gradient,
                                     const OptionalTensor logsumexp_gradient, const Tensor input,
                                     const Tensor linear_weight, const Tensor ids, const OptionalTensor linear_bias,
                                     const Tensor kept, Tensor logits, int64_t ignore_index, double temperature,
                                     double softcap, bool input_gradient, bool weight_gradient, bool bias_gradient) {
  const auto options = log_probs_options(ignore_index, temperature, softcap);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    Backward<T> call(log_probs_gradient, entropy_gradient, logsumexp_gradient, input, linear_weight, ids, linear_bias,
                     kept, options, input_gradient, bias_gradient);
    check_on_cpu("logits", logits);
    check_memory("logits", logits);
    check(logits.sizes().equals(linear_weight.sizes()) && logits.is_contiguous() &&
              logits.scalar_type() == input.scalar_type(),
          "logits must be what the forward op returned, shape ", ShapeString(linear_weight), ", got shape ",
          ShapeString(logits), " and dtype ", DtypeString(logits));
    call.problem.logits = matrix_of(logits);
    if (weight_gradient) call.problem.weight_gradient = call.problem.logits;
    took_branch("linear_log_probs_backward/kept_logits");
    cpu::linear_log_probs_gradient(call.problem);
    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, input.scalar_type()); };
    return {stored(call.of_input), stored(call.of_bias)};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("linear_log_probs_forward", TORCH_BOX(&forward));
  ops.impl("linear_log_probs_backward", TORCH_BOX(&backward));
  ops.impl("linear_log_probs_backward_", TORCH_BOX(&backward_));
}

}  // namespace charlm
