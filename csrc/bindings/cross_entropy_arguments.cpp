#include "bindings/cross_entropy_arguments.h"

namespace charlm {
namespace {

int64_t class_dim(const Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// Whether one stride walks through all of d1, d2, ...
bool inner_is_flat(const Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  int64_t expected = -1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (expected >= 0 && tensor.stride(d) != expected) return false;
    expected = tensor.stride(d) * tensor.size(d);
  }
  return true;
}

Tensor with_flat_inner(const Tensor& tensor) { return inner_is_flat(tensor) ? tensor : as_contiguous(tensor); }

// The shape of class indices: that of the input without its class dimension.
std::vector<int64_t> row_shape(const Tensor& input) {
  const Shape sizes = input.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.erase(shape.begin() + class_dim(input));
  return shape;
}

void check_target(const Tensor& input, Shape row_shape, const Tensor& target) {
  const Shape shape = target.sizes();
  const bool is_one_class = input.dim() == 1 && shape.equals({1});  // one row's class, as torch takes it
  check(shape.equals(row_shape) || is_one_class, "target must have the shape of input ", ShapeString(input),
        " without its class dimension (class indices) or the same shape (class probabilities), got ",
        ShapeString(shape));
  check_same_device("target", target, "input", input);
  check_integral("target", target);
}

}  // namespace

ClassMatrix class_matrix(const Tensor& tensor) {
  const int64_t dim = tensor.dim();
  ClassMatrix matrix;
  matrix.data = const_cast<void*>(tensor.const_data_ptr());
  matrix.storage = storage_of(tensor);
  matrix.class_stride = tensor.stride(class_dim(tensor));
  matrix.outer_stride = dim == 1 ? 0 : tensor.stride(0);
  if (tensor.numel() == 0) return matrix;
  for (int64_t d = 2; d < dim; ++d) matrix.inner *= tensor.size(d);
  if (matrix.inner > 1) {
    int64_t d = dim - 1;
    while (tensor.size(d) == 1) --d;
    matrix.inner_stride = tensor.stride(d);
  }
  return matrix;
}

Tensor empty_gradient(const Tensor& like) {
  const Tensor gradient = allocate_like(like);
  return inner_is_flat(gradient) ? gradient : allocate(like.sizes(), like.scalar_type(), like.device());
}

template <typename T>
CrossEntropyArguments<T> read_cross_entropy_arguments(const Tensor& input, const Tensor& target,
                                                      const OptionalTensor& weight, const OptionalTensor& token_weights,
                                                      const CrossEntropyOptions& options) {
  check(input.dim() >= 1, "input must have shape (C,), (N, C) or (N, C, d1, ...), got ()");
  check_floating("input", input);
  CrossEntropyArguments<T> arguments{input, target, std::nullopt, std::nullopt, row_shape(input), {}};
  const bool probabilities = target.sizes().equals(input.sizes());
  if (probabilities) {
    check_matches("target", target, "input", input);
    check_ignores_nothing(options);
  } else {
    check_target(input, arguments.row_shape, target);
  }
  const int64_t classes = input.size(class_dim(input)), rows = product("input", arguments.row_shape);
  check_sizes({{"N", rows}, {"C", classes}});

  arguments.input = with_flat_inner(input);
  CrossEntropy<T>& problem = arguments.problem;
  problem.classes = classes;
  problem.rows = rows;
  problem.input = class_matrix(arguments.input);
  if (probabilities) {
    arguments.target = with_flat_inner(target);
    problem.probabilities = class_matrix(arguments.target);
  } else {
    arguments.target = contiguous_as(target, ScalarType::Long);
    problem.target = arguments.target.template const_data_ptr<int64_t>();
  }
  set_options(options, &problem);
  set_weight(weight, input, &arguments.weight, &problem);
  set_token_weights(token_weights, arguments.row_shape, input, &arguments.token_weights, &problem);
  return arguments;
}

template CrossEntropyArguments<float> read_cross_entropy_arguments(const Tensor&, const Tensor&, const OptionalTensor&,
                                                                   const OptionalTensor&, const CrossEntropyOptions&);
template CrossEntropyArguments<double> read_cross_entropy_arguments(const Tensor&, const Tensor&, const OptionalTensor&,
                                                                    const OptionalTensor&, const CrossEntropyOptions&);

}  // namespace charlm
