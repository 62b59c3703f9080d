// What the bindings that train and evaluate a model have in common: its parameters, and the options of training.
#pragma once

#include <span>

#include "bindings/checks.h"
#include "kernels/denormals.h"
#include "kernels/models.h"

namespace charlm {

struct TrainingOptions {
  OptimizerKind kind = OptimizerKind::kSgd;
  double momentum = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0, max_grad_norm = 0, softcap = 0;
  int64_t first_step = 0;

  // Tensors of optimizer state for each parameter.
  int64_t states() const { return kind == OptimizerKind::kAdamw ? 2 : momentum != 0 ? 1 : 0; }
};
// Throws ValueError unless each is in its range.
TrainingOptions checked_options(const TrainingOptions& options);
// As numbers of T, which they must be: all but the rates.
template <typename T>
Update<T> update_as(const TrainingOptions& options);
// Of every step of a model: learning_rates (S,), or (M, S) of which it has row `model`.
template <typename T>
std::vector<Rates<T>> rates_as(const TrainingOptions& options, const Tensor& learning_rates, int64_t model);

using Tensors = std::span<const Tensor>;

// They are numbered in 32 bits.
void check_table_rows(const ModelShape& shape, int64_t contexts);
const char* parameter_name(const ModelShape& shape, size_t parameter);
ModelShape check_parameters(Tensors parameters, Tensors state, const TrainingOptions& options, int64_t context_length);
void check_contexts(const Tensor& contexts);

// Reports which way the last step of a model went.
template <typename T>
void took_branch_of(const cpu::MlpModel<T>& model);
template <typename T>
void took_branch_of(const cpu::BigramModel<T>& model);

template <typename T>
std::vector<const T*> read_pointers(Tensors tensors) {
  std::vector<const T*> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.const_data_ptr<T>());
  return result;
}
template <typename T>
std::vector<T*> write_pointers(Tensors tensors) {
  std::vector<T*> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.mutable_data_ptr<T>());
  return result;
}

// function(Model*), null, of the kind of the model and the dtype of its parameters.
template <typename Function>
auto with_model_type(const Tensor& parameter, const ModelShape& shape, const Function& function) {
  const FlushDenormals flush;
  return dispatch_compute_type(parameter, [&](auto type) {
    using T = decltype(type);
    return shape.is_bigram() ? function(static_cast<cpu::BigramModel<T>*>(nullptr))
                             : function(static_cast<cpu::MlpModel<T>*>(nullptr));
  });
}
template <typename Model>
Model make_model(const ModelShape& shape, double softcap) {
  return Model(shape, option_as<typename Model::Value>("softcap", softcap));
}

}  // namespace charlm
