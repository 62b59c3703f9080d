#include "kernels/linear_cross_entropy.h"

#include "bindings/cuda/torch_library.h"
#include "bindings/cuda/upstream.h"
#include "bindings/linear_cross_entropy_arguments.h"

namespace charlm {
namespace {

struct Wanted {
  bool input, weight, bias, target;
};

struct Gradients {
  Tensor input, weight, bias, target;
};

template <typename T>
cuda::LinearCrossEntropy<T> problem_of(const LinearCrossEntropyArguments<T>& arguments,
                                       const CrossEntropyOptions& options) {
  check_class_count(arguments.classes);
  cuda::LinearCrossEntropy<T> problem;
  problem.layer.input = arguments.input_rows;
  problem.layer.weight = arguments.weight;
  problem.layer.bias = arguments.bias_values();
  problem.loss = arguments.loss;
  problem.mean = options.reduction == Reduction::kMean;
  return problem;
}

template <typename T>
Gradients allocate_gradients(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                             const Wanted& wanted, cuda::LinearCrossEntropy<T>* problem) {
  const auto gradient = [&](const Tensor& like, bool want) {
    return want ? allocate(like.sizes(), input.scalar_type(), input.device())
                : allocate({0}, input.scalar_type(), input.device());
  };
  const Gradients gradients{gradient(input, wanted.input), gradient(linear_weight, wanted.weight),
                            allocate({wanted.bias ? linear_weight.size(0) : 0}, input.scalar_type(), input.device()),
                            gradient(target, wanted.target)};
  if (wanted.input) problem->layer.input_gradient = gradients.input.mutable_data_ptr();
  if (wanted.weight) problem->layer.weight_gradient = gradients.weight.mutable_data_ptr();
  if (wanted.bias) problem->layer.bias_gradient = gradients.bias.mutable_data_ptr();
  if (wanted.target) {
    problem->loss.probabilities_gradient = problem->loss.probabilities;
    problem->loss.probabilities_gradient.data = gradients.target.mutable_data_ptr();
  }
  return gradients;
}

template <typename T>
void run(const char* in_chunks, const char* at_once, const DeviceCall& call,
         const cuda::LinearCrossEntropy<T>& problem) {
  took_branch(cuda::chunk_rows(problem.layer) < problem.loss.rows ? in_chunks : at_once);
  TorchLibrary library(call);
  call.check(cuda::linear_cross_entropy(problem, library, call.stream()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor input, const Tensor linear_weight,
                                                           const Tensor target, const OptionalTensor linear_bias,
                                                           const OptionalTensor weight,
                                                           const OptionalTensor token_weights, int64_t ignore_index,
                                                           int64_t reduction, double label_smoothing, double softcap,
                                                           double z_loss, bool input_gradient, bool weight_gradient,
                                                           bool bias_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const DeviceCall call("input", input);
  return dispatch_compute_type(input, [&](auto compute) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(compute);
    const auto arguments = read_linear_cross_entropy_arguments<T>(input, linear_weight, target, linear_bias, weight,
                                                                  token_weights, options, input.scalar_type());
    cuda::LinearCrossEntropy<T> problem = problem_of(arguments, options);
    const bool per_row = options.reduction == Reduction::kNone;
    const Tensor loss = per_row ? allocate(leading_sizes(input), compute_type(input), call.device)
                                : allocate({}, compute_type(input), call.device);
    (per_row ? problem.row_loss : problem.total_loss) = loss.template mutable_data_ptr<T>();
    const Tensor lse = allocate({lse_values(arguments.rows, options.reduction)}, compute_type(input), call.device);
    set_lse(lse, options.reduction, &problem.loss);
    const Gradients gradients = allocate_gradients(input, linear_weight, target,
                                                   {input_gradient, weight_gradient, bias_gradient, false}, &problem);
    run("linear_cross_entropy_forward/in_chunks", "linear_cross_entropy_forward/at_once", call, problem);
    if (arguments.classes == 0) finish_without_classes(options.reduction, target, loss);
    return {loss, lse, gradients.input, gradients.weight, gradients.bias};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor grad_output, const Tensor input,
                                                    const Tensor linear_weight, const Tensor target,
                                                    const OptionalTensor linear_bias, const OptionalTensor weight,
                                                    const OptionalTensor token_weights, const Tensor lse,
                                                    int64_t ignore_index, int64_t reduction, double label_smoothing,
                                                    double softcap, double z_loss, bool input_gradient,
                                                    bool weight_gradient, bool bias_gradient, bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const DeviceCall call("input", input);
  return dispatch_compute_type(input, [&](auto compute) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(compute);
    const auto arguments = read_linear_cross_entropy_arguments<T>(input, linear_weight, target, linear_bias, weight,
                                                                  token_weights, options, input.scalar_type());
    cuda::LinearCrossEntropy<T> problem = problem_of(arguments, options);
    check(!target_gradient || problem.loss.target == nullptr,
          "target must be class probabilities to have a gradient, got class indices");
    check_same_device("lse", lse, "input", input);
    set_lse(lse, options.reduction, &problem.loss);
    problem.loss.lse_is_known = true;
    const Tensor upstream = read_upstream(grad_output, input, options.reduction, &problem.loss, &problem.upstream);
    const Gradients gradients = allocate_gradients(
        input, linear_weight, target, {input_gradient, weight_gradient, bias_gradient, target_gradient}, &problem);
    run("linear_cross_entropy_backward/in_chunks", "linear_cross_entropy_backward/at_once", call, problem);
    return {gradients.input, gradients.weight, gradients.bias, gradients.target};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("linear_cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("linear_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
