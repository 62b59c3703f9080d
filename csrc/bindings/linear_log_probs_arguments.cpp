#include "bindings/linear_log_probs_arguments.h"

namespace charlm {

template <typename T>
LinearLogProbsArguments<T> read_linear_log_probs_arguments(const Tensor& input, const Tensor& linear_weight,
                                                           const Tensor& ids, const OptionalTensor& linear_bias,
                                                           const LogProbsOptions& options, ScalarType bias_type) {
  const int64_t rows = check_output_layer(input, linear_weight, linear_bias);
  LinearLogProbsArguments<T> arguments{
      .input = as_contiguous(input), .ids = ids, .bias = contiguous_as(linear_bias, bias_type)};
  arguments.input_rows = Matrix(arguments.input.const_data_ptr(), storage_of(input), rows, input.size(input.dim() - 1));
  arguments.weight = matrix_of(linear_weight);
  set_ids(ids, input, linear_weight.size(0), options, &arguments.ids, &arguments.log_probs);
  return arguments;
}

template LinearLogProbsArguments<float> read_linear_log_probs_arguments(const Tensor&, const Tensor&, const Tensor&,
                                                                        const OptionalTensor&, const LogProbsOptions&,
                                                                        ScalarType);
template LinearLogProbsArguments<double> read_linear_log_probs_arguments(const Tensor&, const Tensor&, const Tensor&,
                                                                         const OptionalTensor&, const LogProbsOptions&,
                                                                         ScalarType);

}  // namespace charlm
