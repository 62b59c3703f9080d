#include "bindings/cross_entropy_arguments.h"
#include "bindings/cuda/upstream.h"

namespace charlm {
namespace {

template <typename T>
CrossEntropyArguments<T> read_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                                        const CrossEntropyOptions& options) {
  CrossEntropyArguments<T> arguments = read_cross_entropy_arguments<T>(input, target, weight, options);
  check_class_count(arguments.problem.classes);
  return arguments;
}

// Divides gradients by the mean's denominator, which is summed up on the device unless it is the number of rows.
template <typename T>
Tensor divide_by_denominator(const DeviceCall& call, Reduction reduction, CrossEntropy<T>* problem,
                             cuda::CrossEntropyRun<T>* run) {
  const bool on_device = reduction == Reduction::kMean && problem->target != nullptr;
  const Tensor denominators = call.workspace<T>(on_device ? cuda::kDenominatorParts : 0);
  if (on_device) {
    run->denominators = denominators.template mutable_data_ptr<T>();
    call.check(cuda::cross_entropy_denominators(*problem, denominators.template mutable_data_ptr<T>(), call.stream()));
  } else if (reduction == Reduction::kMean) {
    problem->scale = 1 / static_cast<T>(problem->rows);
  }
  return denominators;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor input, const Tensor target, const OptionalTensor weight,
                                           int64_t ignore_index, int64_t reduction, double label_smoothing,
                                           double softcap, double z_loss, bool compute_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const DeviceCall call("input", input);
  std::optional<std::tuple<Tensor, Tensor, Tensor>> result;
  dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    CrossEntropyArguments<T> arguments = read_arguments<T>(input, target, weight, options);
    CrossEntropy<T>& problem = arguments.problem;
    cuda::CrossEntropyRun<T> run;
    const bool reduces = options.reduction != Reduction::kNone;
    const Tensor loss = reduces ? allocate({}, compute_type(input), call.device)
                                : allocate(arguments.row_shape, compute_type(input), call.device);
    const Tensor lse = allocate({2, problem.rows}, compute_type(input), call.device);
    set_lse(lse, &problem);
    const Tensor gradient = compute_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type(), call.device);
    if (compute_gradient) problem.input_gradient = class_matrix(gradient);
    const Tensor denominators =
        divide_by_denominator(call, compute_gradient ? options.reduction : Reduction::kNone, &problem, &run);

    const int64_t parts = cuda::cross_entropy_parts(problem);
    const Tensor sums = call.workspace<T>(reduces ? 2 * parts : 0);
    if (reduces) {
      run.loss_parts = sums.template mutable_data_ptr<T>();
      run.weight_parts = run.loss_parts + parts;
    } else {
      run.row_loss = loss.template mutable_data_ptr<T>();
    }
    const Tensor split_rows = call.workspace<T>(cuda::cross_entropy_split_values(problem));
    run.split_rows = split_rows.template mutable_data_ptr<T>();
    call.check(cuda::cross_entropy(problem, run, call.stream()));
    if (reduces) {
      const T* weights = options.reduction == Reduction::kMean ? run.weight_parts : nullptr;
      call.check(cuda::cross_entropy_reduce<T>(run.loss_parts, weights, parts, loss.template mutable_data_ptr<T>(),
                                               call.stream()));
    }
    if (problem.classes == 0) finish_without_classes(options.reduction, target, loss);
    result.emplace(loss, lse, gradient);
  });
  return *result;
}

std::tuple<Tensor, Tensor> backward(const Tensor grad_output, const Tensor input, const Tensor target,
                                    const OptionalTensor weight, const Tensor lse, int64_t ignore_index,
                                    int64_t reduction, double label_smoothing, double softcap, double z_loss,
                                    bool input_gradient, bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const DeviceCall call("input", input);
  const Tensor grad_input = input_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type(), call.device);
  const Tensor grad_target = target_gradient ? empty_gradient(target) : allocate({0}, input.scalar_type(), call.device);
  dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    CrossEntropyArguments<T> arguments = read_arguments<T>(input, target, weight, options);
    CrossEntropy<T>& problem = arguments.problem;
    cuda::CrossEntropyRun<T> run;
    check_same_device("lse", lse, "input", input);
    set_lse(lse, &problem);
    problem.lse_is_known = true;
    if (input_gradient) problem.input_gradient = class_matrix(grad_input);
    if (target_gradient) {
      check(problem.target == nullptr, "target must be class probabilities to have a gradient");
      problem.probabilities_gradient = class_matrix(grad_target);
    }
    const Tensor upstream = read_upstream(grad_output, input, options.reduction, &problem, &run.upstream);
    const Tensor denominators = divide_by_denominator(call, options.reduction, &problem, &run);
    call.check(cuda::cross_entropy(problem, run, call.stream()));
  });
  return {grad_input, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
