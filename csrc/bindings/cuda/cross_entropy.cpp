#include "bindings/cross_entropy_arguments.h"
#include "bindings/cuda/torch_library.h"
#include "bindings/cuda/upstream.h"

namespace charlm {
namespace {

template <typename T>
CrossEntropyArguments<T> read_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                        const OptionalTensor& token_weights, const CrossEntropyOptions& options) {
  CrossEntropyArguments<T> arguments = read_cross_entropy_arguments<T>(input, target, weight, token_weights, options);
  check_class_count(arguments.problem.classes);
  return arguments;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor input, const Tensor target, const OptionalTensor weight,
                                           const OptionalTensor token_weights, int64_t ignore_index, int64_t reduction,
                                           double label_smoothing, double softcap, double z_loss,
                                           bool compute_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const DeviceCall device("input", input);
  return dispatch_compute_type(input, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(type);
    const CrossEntropyArguments<T> arguments = read_arguments<T>(input, target, weight, token_weights, options);
    cuda::CrossEntropyCall<T> call;
    call.problem = arguments.problem;
    call.mean = options.reduction == Reduction::kMean;
    const bool per_row = options.reduction == Reduction::kNone;
    const Tensor loss = per_row ? allocate(arguments.row_shape, compute_type(input), device.device)
                                : allocate({}, compute_type(input), device.device);
    (per_row ? call.row_loss : call.total_loss) = loss.template mutable_data_ptr<T>();
    const Tensor lse = allocate({lse_values(call.problem.rows, options.reduction)}, compute_type(input), device.device);
    set_lse(lse, options.reduction, &call.problem);
    const Tensor gradient =
        compute_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type(), device.device);
    if (compute_gradient) call.problem.input_gradient = class_matrix(gradient);
    TorchLibrary library(device);
    device.check(cuda::cross_entropy(call, library, device.stream()));
    if (call.problem.classes == 0) finish_without_classes(options.reduction, target, loss);
    return {loss, lse, gradient};
  });
}

std::tuple<Tensor, Tensor> backward(const Tensor grad_output, const Tensor input, const Tensor target,
                                    const OptionalTensor weight, const OptionalTensor token_weights, const Tensor lse,
                                    int64_t ignore_index, int64_t reduction, double label_smoothing, double softcap,
                                    double z_loss, bool input_gradient, bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const DeviceCall device("input", input);
  const Tensor grad_input = input_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type(), device.device);
  const Tensor grad_target =
      target_gradient ? empty_gradient(target) : allocate({0}, input.scalar_type(), device.device);
  dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    const CrossEntropyArguments<T> arguments = read_arguments<T>(input, target, weight, token_weights, options);
    cuda::CrossEntropyCall<T> call;
    CrossEntropy<T>& problem = call.problem = arguments.problem;
    call.mean = options.reduction == Reduction::kMean;
    check_same_device("lse", lse, "input", input);
    set_lse(lse, options.reduction, &problem);
    problem.lse_is_known = true;
    if (input_gradient) problem.input_gradient = class_matrix(grad_input);
    if (target_gradient) {
      check(problem.target == nullptr, "target must be class probabilities to have a gradient");
      problem.probabilities_gradient = class_matrix(grad_target);
    }
    const Tensor upstream = read_upstream(grad_output, input, options.reduction, &problem, &call.upstream);
    TorchLibrary library(device);
    device.check(cuda::cross_entropy(call, library, device.stream()));
  });
  return {grad_input, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
