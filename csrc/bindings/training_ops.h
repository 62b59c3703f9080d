// The ops that train, of which a device has only what trains a population: one model alone is a population of one.
#pragma once

#include "bindings/population.h"

namespace charlm {

// train(population, contexts, targets, context_index, batch_indices): of each model, the steps on its own batches,
// batch_indices (M, S, B), or (S, B) of one alone.
template <auto train>
struct BatchOps {
  static Tensor train_steps(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                            const Tensor targets, const OptionalTensor context_index, const Tensor batch_indices,
                            const Tensor learning_rates, int64_t optimizer, double momentum, double beta1, double beta2,
                            double eps, double weight_decay, double max_grad_norm, double softcap, int64_t first_step) {
    const Population population = checked_model(std::move(parameters), std::move(state), contexts, learning_rates,
                                                {static_cast<OptimizerKind>(optimizer), momentum, beta1, beta2, eps,
                                                 weight_decay, max_grad_norm, softcap, first_step});
    check(batch_indices.dim() == 2 && batch_indices.size(0) == population.steps() && batch_indices.size(1) > 0,
          "batch_indices must have shape (S=", population.steps(), ", B), got ", ShapeString(batch_indices));
    return train(population, contexts, targets, context_index, batch_indices);
  }

  static Tensor train_population(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                                 const Tensor targets, const OptionalTensor context_index, const Tensor batch_indices,
                                 const Tensor learning_rates, int64_t optimizer, const Tensor options,
                                 const Tensor first_steps) {
    const Population population = checked_population(std::move(parameters), std::move(state), contexts, learning_rates,
                                                     optimizer, options, first_steps);
    const int64_t models = population.models(), steps = population.steps();
    check(batch_indices.dim() == 3 && batch_indices.size(0) == models && batch_indices.size(1) == steps &&
              batch_indices.size(2) > 0,
          "batch_indices must have shape (M=", models, ", S=", steps, ", B), got ", ShapeString(batch_indices));
    return train(population, contexts, targets, context_index, batch_indices);
  }

  template <typename Library>
  static void add_to(Library& ops) {
    ops.impl("train_steps", TORCH_BOX(&train_steps));
    ops.impl("train_population", TORCH_BOX(&train_population));
  }
};

// train(population, contexts, row_ptr, targets, counts): every step of every model on all examples.
template <auto train>
struct FullBatchOps {
  static Tensor train_full_steps(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                                 const Tensor row_ptr, const Tensor targets, const Tensor counts,
                                 const Tensor learning_rates, int64_t optimizer, double momentum, double beta1,
                                 double beta2, double eps, double weight_decay, double max_grad_norm, double softcap,
                                 int64_t first_step) {
    const Population population = checked_model(std::move(parameters), std::move(state), contexts, learning_rates,
                                                {static_cast<OptimizerKind>(optimizer), momentum, beta1, beta2, eps,
                                                 weight_decay, max_grad_norm, softcap, first_step});
    return train(population, contexts, row_ptr, targets, counts);
  }

  static Tensor train_full_population(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                                      const Tensor row_ptr, const Tensor targets, const Tensor counts,
                                      const Tensor learning_rates, int64_t optimizer, const Tensor options,
                                      const Tensor first_steps) {
    const Population population = checked_population(std::move(parameters), std::move(state), contexts, learning_rates,
                                                     optimizer, options, first_steps);
    return train(population, contexts, row_ptr, targets, counts);
  }

  template <typename Library>
  static void add_to(Library& ops) {
    ops.impl("train_full_steps", TORCH_BOX(&train_full_steps));
    ops.impl("train_full_population", TORCH_BOX(&train_full_population));
  }
};

}  // namespace charlm
