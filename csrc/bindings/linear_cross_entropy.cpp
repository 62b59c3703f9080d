#include "kernels/linear_cross_entropy.h"

#include "bindings/branches.h"
#include "bindings/layers.h"
#include "bindings/linear_cross_entropy_arguments.h"

namespace charlm {
namespace {

// The checked arguments, and gradients in the dtype that is computed in; empty where not wanted.
template <typename T>
struct Call {
  const LinearCrossEntropyArguments<T> arguments;
  cpu::LinearCrossEntropy<T> problem;
  const Tensor input_gradient, weight_gradient, bias_gradient;

  Call(const Tensor& input, const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
       const OptionalTensor& weight, const OptionalTensor& token_weights, const CrossEntropyOptions& options,
       bool wants_input, bool wants_weight, bool wants_bias)
      : arguments(read_linear_cross_entropy_arguments<T>(input, linear_weight, target, linear_bias, weight,
                                                         token_weights, options, kDtype<T>)),
        problem(read_problem(target)),
        input_gradient(allocate_gradient(input.sizes(), wants_input, &problem.layer.input_gradient)),
        weight_gradient(allocate_gradient(linear_weight.sizes(), wants_weight, &problem.weight_gradient)),
        bias_gradient(allocate_gradient({arguments.classes}, wants_bias, &problem.layer.bias_gradient)) {}

  cpu::LinearCrossEntropy<T> read_problem(const Tensor& target) const {
    check_on_cpu("target", target);
    check_targets(arguments.loss, target.sizes());
    return {.layer = {.input = arguments.input_rows,
                      .weight = arguments.weight,
                      .bias = static_cast<const T*>(arguments.bias_values())},
            .loss = arguments.loss};
  }

  void run(const char* in_weight_gradient, const char* in_chunks) const {
    took_branch(cpu::linear_cross_entropy_in_weight_gradient(problem) ? in_weight_gradient : in_chunks);
    cpu::linear_cross_entropy(problem);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_forward(
    const Tensor input, const Tensor linear_weight, const Tensor target, const OptionalTensor linear_bias,
    const OptionalTensor weight, const OptionalTensor token_weights, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool input_gradient, bool weight_gradient,
    bool bias_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
    Call<decltype(type)> call(input, linear_weight, target, linear_bias, weight, token_weights, options, input_gradient,
                              weight_gradient, bias_gradient);
    const Losses<decltype(type)> losses(options.reduction, leading_sizes(input), Kept::kLse, &call.problem.loss);
    call.run("linear_cross_entropy_forward/in_weight_gradient", "linear_cross_entropy_forward/chunks");
    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, input.scalar_type()); };
    return {losses.reduced(call.problem.loss), losses.kept(), stored(call.input_gradient), stored(call.weight_gradient),
            stored(call.bias_gradient)};
  });
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor grad_output, const Tensor input,
                                                    const Tensor linear_weight, const Tensor target,
                                                    const OptionalTensor linear_bias, const OptionalTensor weight,
                                                    const OptionalTensor token_weights, const Tensor lse,
                                                    int64_t ignore_index, int64_t reduction, double label_smoothing,
                                                    double softcap, double z_loss, bool input_gradient,
                                                    bool weight_gradient, bool bias_gradient, bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    Call<decltype(type)> call(input, linear_weight, target, linear_bias, weight, token_weights, options, input_gradient,
                              weight_gradient, bias_gradient);
    CrossEntropy<decltype(type)>& loss = call.problem.loss;
    check(!target_gradient || loss.target == nullptr,
          "target must be class probabilities to have a gradient, got class indices");
    set_lse(lse, options.reduction, &loss);
    loss.lse_is_known = true;
    const Tensor grad_target = allocate(target_gradient ? target.sizes() : Shape({0}), input.scalar_type());
    if (target_gradient) {
      loss.probabilities_gradient = loss.probabilities;
      loss.probabilities_gradient.data = grad_target.mutable_data_ptr();
    }
    OptionalTensor upstream;
    set_upstream(grad_output, options.reduction, &upstream, &loss);
    call.run("linear_cross_entropy_backward/in_weight_gradient", "linear_cross_entropy_backward/chunks");
    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, input.scalar_type()); };
    return {stored(call.input_gradient), stored(call.weight_gradient), stored(call.bias_gradient), grad_target};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("linear_cross_entropy_forward", TORCH_BOX(&linear_cross_entropy_forward));
  ops.impl("linear_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
