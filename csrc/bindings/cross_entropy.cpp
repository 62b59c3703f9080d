#include "bindings/branches.h"
#include "bindings/cross_entropy_arguments.h"

namespace charlm {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor input, const Tensor target, const OptionalTensor weight,
                                           const OptionalTensor token_weights, int64_t ignore_index, int64_t reduction,
                                           double label_smoothing, double softcap, double z_loss,
                                           bool compute_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(type);
    CrossEntropyArguments<T> arguments = read_cross_entropy_arguments<T>(input, target, weight, token_weights, options);
    CrossEntropy<T>& problem = arguments.problem;
    check_targets(problem, target.sizes());
    const Losses<T> losses(options.reduction, arguments.row_shape,
                           compute_gradient ? Kept::kTargetLogProbability : Kept::kLse, &problem);
    const Tensor gradient = compute_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type());
    if (compute_gradient) problem.input_gradient = class_matrix(gradient);
    took_branch("cross_entropy_forward/op");
    cpu::cross_entropy(problem);
    return {losses.reduced(problem), losses.kept(), gradient};
  });
}

std::tuple<Tensor, Tensor> backward(const Tensor grad_output, const Tensor input, const Tensor target,
                                    const OptionalTensor weight, const OptionalTensor token_weights, const Tensor lse,
                                    int64_t ignore_index, int64_t reduction, double label_smoothing, double softcap,
                                    double z_loss, bool input_gradient, bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const Tensor grad_input = input_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type());
  const Tensor grad_target = target_gradient ? empty_gradient(target) : allocate({0}, input.scalar_type());
  dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    CrossEntropyArguments<T> arguments = read_cross_entropy_arguments<T>(input, target, weight, token_weights, options);
    CrossEntropy<T>& problem = arguments.problem;
    check_targets(problem, target.sizes());
    set_lse(lse, options.reduction, &problem);
    problem.lse_is_known = true;
    if (input_gradient) problem.input_gradient = class_matrix(grad_input);
    if (target_gradient) {
      check(problem.target == nullptr, "target must be class probabilities to have a gradient");
      problem.probabilities_gradient = class_matrix(grad_target);
    }
    OptionalTensor upstream;
    set_upstream(grad_output, options.reduction, &upstream, &problem);
    cpu::cross_entropy(problem);
  });
  return {grad_input, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
