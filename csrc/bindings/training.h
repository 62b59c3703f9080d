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
// As numbers of T, which they must be.
template <typename T>
Update<T> update_as(const TrainingOptions& options);
// For step s of a call.
template <typename T>
void set_learning_rate(const TrainingOptions& options, int64_t s, double rate, Update<T>* update);

using Tensors = std::span<const Tensor>;

// They are numbered in 32 bits.
void check_table_rows(const ModelShape& shape, int64_t contexts);
ModelShape check_parameters(Tensors parameters, Tensors state, const TrainingOptions& options, int64_t context_length);
void check_contexts(const Tensor& contexts);
Tensor checked_learning_rates(const Tensor& learning_rates);

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

// Trains in place, a step for each learning rate: batch_at(s) is the batch of step s. Returns the losses.
template <typename Model, typename BatchAt>
Tensor train_in_place(Model* model, Tensors parameters, Tensors state, const TrainingOptions& options,
                      const Tensor& learning_rates, const cpu::BatchSizes& most, const BatchAt& batch_at) {
  using T = typename Model::Value;
  const double* rates = learning_rates.const_data_ptr<double>();
  const Tensor losses = allocate({learning_rates.numel()}, kDtype<T>);
  const auto pointers = write_pointers<T>(parameters), state_pointers = write_pointers<T>(state);
  Update<T> update = update_as<T>(options);
  cpu::train<T>(model, pointers, state_pointers, &update, learning_rates.numel(), most,
                losses.template mutable_data_ptr<T>(), [&](int64_t s) {
                  set_learning_rate(options, s, rates[s], &update);
                  return batch_at(s);
                });
  if (learning_rates.numel() > 0) took_branch_of(*model);
  return losses;
}

// function(model), which has the kind and the dtype of the parameters.
template <typename Function>
auto with_model(Tensors parameters, const ModelShape& shape, double softcap, const Function& function) {
  const FlushDenormals flush;
  return dispatch_compute_type(parameters[0], [&](auto type) {
    using T = decltype(type);
    if (shape.is_bigram()) {
      cpu::BigramModel<T> model(shape);
      return function(&model);
    }
    cpu::MlpModel<T> model(shape, option_as<T>("softcap", softcap));
    return function(&model);
  });
}

}  // namespace charlm
