#include "bindings/cross_entropy.h"

namespace charlm {
namespace {

int64_t class_dim(const Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// The (N, C, d1, ...) tensor as an (N * d1 * ..., C) matrix. Trailing dimensions that no single stride describes have
// been made contiguous by the caller.
ClassMatrix class_matrix(const Tensor& tensor) {
  const int64_t dim = tensor.dim();
  ClassMatrix matrix;
  matrix.data = const_cast<void*>(tensor.const_data_ptr());
  matrix.storage = storage_of(tensor);
  matrix.class_stride = tensor.stride(class_dim(tensor));
  matrix.outer_stride = dim == 1 ? 0 : tensor.stride(0);
  for (int64_t d = 2; d < dim; ++d) matrix.inner *= tensor.size(d);
  if (matrix.inner > 1) {
    int64_t d = dim - 1;
    while (tensor.size(d) == 1) --d;
    matrix.inner_stride = tensor.stride(d);
  }
  return matrix;
}

// Whether one stride walks through all of d1, d2, ...
bool inner_is_flat(const Tensor& tensor) {
  int64_t expected = -1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (expected >= 0 && tensor.stride(d) != expected) return false;
    expected = tensor.stride(d) * tensor.size(d);
  }
  return true;
}

Tensor with_flat_inner(const Tensor& tensor) {
  return inner_is_flat(tensor) ? tensor : torch::stable::contiguous(tensor);
}

Tensor empty_gradient(const Tensor& like) {
  const Tensor gradient = allocate_like(like);
  return inner_is_flat(gradient) ? gradient : allocate(like.sizes(), like.scalar_type());
}

// What forward and backward share: the checked arguments, converted, and the problem that points into them.
template <typename T>
struct Arguments {
  Tensor input, target;
  OptionalTensor weight;
  CrossEntropy<T> problem;
};

void check_target(const Tensor& input, const Tensor& target, bool probabilities) {
  if (probabilities) {
    check_matches("target", target, "input", input);
    return;
  }
  const int64_t dim = input.dim();
  bool matches = target.dim() == dim - 1;
  for (int64_t d = 0, t = 0; matches && d < dim; ++d) {
    if (d != class_dim(input)) matches = target.size(t++) == input.size(d);
  }
  check(matches, "target must have the shape of input ", ShapeString(input),
        " without its class dimension (class indices) or the same shape (class probabilities), got ",
        ShapeString(target));
  check_integral("target", target);
  check_on_cpu("target", target);
}

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

template <typename T>
Arguments<T> read_arguments(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                            const CrossEntropyOptions& options) {
  check(input.dim() >= 1, "input must have shape (C,), (N, C) or (N, C, d1, ...), got ()");
  check_floating("input", input);
  const bool probabilities = same_shape(input, target);
  check_target(input, target, probabilities);

  Arguments<T> arguments{with_flat_inner(input), target, std::nullopt, {}};
  CrossEntropy<T>& problem = arguments.problem;
  problem.classes = input.size(class_dim(input));
  check(problem.classes > 0, "input must have at least one class, got shape ", ShapeString(input));
  problem.rows = input.numel() / problem.classes;
  problem.input = class_matrix(arguments.input);
  if (probabilities) {
    arguments.target = with_flat_inner(target);
    problem.probabilities = class_matrix(arguments.target);
  } else {
    arguments.target = contiguous_as(target, ScalarType::Long);
    problem.target = arguments.target.template const_data_ptr<int64_t>();
  }
  set_options(options, weight, &arguments.weight, &problem);
  if (!probabilities) check_targets(problem, target.sizes());
  return arguments;
}

std::vector<int64_t> row_shape(const Tensor& input) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d != class_dim(input)) shape.push_back(input.size(d));
  }
  return shape;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor input, const Tensor target, const OptionalTensor weight,
                                           int64_t ignore_index, int64_t reduction, double label_smoothing,
                                           double softcap, double z_loss, bool compute_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  std::optional<std::tuple<Tensor, Tensor, Tensor>> result;
  dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    Arguments<T> arguments = read_arguments<T>(input, target, weight, options);
    CrossEntropy<T>& problem = arguments.problem;
    const Tensor row_loss = allocate({problem.rows}, compute_type(input));
    const Tensor lse = allocate({2, problem.rows}, compute_type(input));
    problem.loss = row_loss.template mutable_data_ptr<T>();
    set_lse(lse, &problem);
    Tensor gradient = compute_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type());
    const T denominator = denominator_of(problem, options.reduction);
    if (compute_gradient) {
      problem.input_gradient = class_matrix(gradient);
      problem.scale = 1 / denominator;
    }
    run_tiles(problem);
    result.emplace(reduce(problem, options.reduction, denominator, row_loss, row_shape(input)), lse, gradient);
  });
  return *result;
}

std::tuple<Tensor, Tensor> backward(const Tensor grad_output, const Tensor input, const Tensor target,
                                    const OptionalTensor weight, const Tensor lse, int64_t ignore_index,
                                    int64_t reduction, double label_smoothing, double softcap, double z_loss,
                                    bool input_gradient, bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const Tensor grad_input = input_gradient ? empty_gradient(input) : allocate({0}, input.scalar_type());
  const Tensor grad_target = target_gradient ? empty_gradient(target) : allocate({0}, input.scalar_type());
  dispatch_compute_type(input, [&](auto type) {
    using T = decltype(type);
    Arguments<T> arguments = read_arguments<T>(input, target, weight, options);
    CrossEntropy<T>& problem = arguments.problem;
    set_lse(lse, &problem);
    problem.lse_is_known = true;
    if (input_gradient) problem.input_gradient = class_matrix(grad_input);
    if (target_gradient) {
      check(problem.target == nullptr, "target must be class probabilities to have a gradient");
      problem.probabilities_gradient = class_matrix(grad_target);
    }
    OptionalTensor upstream;
    set_upstream(grad_output, options.reduction, &upstream, &problem);
    run_tiles(problem);
  });
  return {grad_input, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, library) {
  library.impl("cross_entropy_forward", TORCH_BOX(&forward));
  library.impl("cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
