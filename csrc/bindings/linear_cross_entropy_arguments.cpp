#include "bindings/linear_cross_entropy_arguments.h"

namespace charlm {
template <typename T>
LinearCrossEntropyArguments<T> read_linear_cross_entropy_arguments(
    const Tensor& input, const Tensor& linear_weight, const Tensor& target, const OptionalTensor& linear_bias,
    const OptionalTensor& weight, const OptionalTensor& token_weights, const CrossEntropyOptions& options,
    ScalarType bias_type) {
  const int64_t rows = check_output_layer(input, linear_weight, linear_bias);
  const int64_t features = input.size(input.dim() - 1), classes = linear_weight.size(0);
  const Shape row_shape = leading_sizes(input), target_shape = target.sizes();

  // Integers in the shape of probabilities are probabilities of the wrong dtype, unless one index may have that shape.
  const bool has_dims = target.dim() == input.dim();
  const bool has_shape = has_dims && leading_sizes(target).equals(row_shape) && target_shape.back() == classes;
  const bool probabilities = has_dims && (!is_integral(target.scalar_type()) || (input.dim() > 1 && has_shape));
  if (probabilities) {
    check_ignores_nothing(options);
    check_matches("target", target, "input", input);
    check(has_shape, "target must have shape (..., C=", classes, ") with the leading dimensions of input ",
          ShapeString(input), ", got ", ShapeString(target));
  } else {
    const bool is_one_class = input.dim() == 1 && target_shape.equals({1});  // as torch takes it
    check(is_one_class || target_shape.equals(row_shape), "target must have the shape of input ", ShapeString(input),
          " without its last dimension (class indices), or with C=", classes,
          " in its place (class probabilities), got ", ShapeString(target));
    check_same_device("target", target, "input", input);
    check_integral("target", target);
  }

  LinearCrossEntropyArguments<T> problem{
      .input = as_contiguous(input),
      .target = contiguous_as(target, probabilities ? input.scalar_type() : ScalarType::Long),
      .bias = contiguous_as(linear_bias, bias_type)};
  problem.input_rows = Matrix(problem.input.const_data_ptr(), storage_of(problem.input), rows, features);
  problem.weight = matrix_of(linear_weight);
  problem.rows = rows;
  problem.features = features;
  problem.classes = classes;
  problem.loss.rows = rows;
  problem.loss.classes = classes;
  if (probabilities) {
    problem.loss.probabilities.data = const_cast<void*>(problem.target.const_data_ptr());
    problem.loss.probabilities.storage = storage_of(target);
    problem.loss.probabilities.outer_stride = classes;
  } else {
    problem.loss.target = problem.target.template const_data_ptr<int64_t>();
  }
  set_options(options, &problem.loss);
  set_weight(weight, input, &problem.class_weight, &problem.loss);
  set_token_weights(token_weights, row_shape, input, &problem.token_weights, &problem.loss);
  return problem;
}

template LinearCrossEntropyArguments<float> read_linear_cross_entropy_arguments(const Tensor&, const Tensor&,
                                                                                const Tensor&, const OptionalTensor&,
                                                                                const OptionalTensor&,
                                                                                const OptionalTensor&,
                                                                                const CrossEntropyOptions&, ScalarType);
template LinearCrossEntropyArguments<double> read_linear_cross_entropy_arguments(
    const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const CrossEntropyOptions&, ScalarType);

}  // namespace charlm
