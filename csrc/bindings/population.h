// Models of one shape that are trained together: their arguments, checked; and on the CPU, the call that trains them.
#pragma once

#include <exception>
#include <stdexcept>

#include "bindings/training.h"

namespace charlm {

// Every model has what it would have by itself, and one alone is the population of train_steps.
struct Population {
  ModelShape shape;
  std::vector<Tensor> parameters, state;  // those of the first model, then of the second, ...
  std::vector<TrainingOptions> options;   // (M,)
  Tensor learning_rates;                  // (M, S), or (S,) of one alone; float64, contiguous
  bool is_one;                            // it has no number in messages

  int64_t models() const { return static_cast<int64_t>(options.size()); }
  int64_t steps() const { return learning_rates.size(learning_rates.dim() - 1); }
  Tensors parameters_of(int64_t model) const { return part(parameters, model); }
  Tensors state_of(int64_t model) const { return part(state, model); }

 private:
  Tensors part(Tensors tensors, int64_t model) const {
    const size_t size = tensors.size() / options.size();
    return tensors.subspan(model * size, size);
  }
};

// The model of train_steps and train_full_steps.
Population checked_model(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor& contexts,
                         const Tensor& learning_rates, const TrainingOptions& options);
// The models of train_population and train_full_population.
Population checked_population(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor& contexts,
                              const Tensor& learning_rates, int64_t optimizer, const Tensor& options,
                              const Tensor& first_steps);
// Throws ValueError where tensors of two models, which were made ready to be written to, have memory in common.
void check_disjoint(const Population& population);

// function(), whose errors name the model that they are about, where there are several.
template <typename Function>
auto about_model(const Population& population, int64_t model, const Function& function) {
  const auto named = [&](const std::exception& error) { return concatenate("model ", model, ": ", error.what()); };
  try {
    return function();
  } catch (const std::invalid_argument& error) {
    population.is_one ? throw : throw std::invalid_argument(named(error));
  } catch (const std::runtime_error& error) {
    population.is_one ? throw : throw std::runtime_error(named(error));
  }
}

// function(i) for every model, by any threads; throws the error of the first model that has one.
template <typename Function>
void for_each_model(const Population& population, const Function& function) {
  std::vector<std::exception_ptr> errors(population.models());
  for_each(population.models(), [&](int64_t i) {
    try {
      function(i);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// Trains all models in place on the CPU; returns the losses. prepare(turns) returns the batches that `cpu::train`
// takes. Nothing of any model changes before the last of what can be wrong has been looked for.
template <typename Model, typename Prepare>
Tensor train_in_place(const Population& population, const cpu::BatchSizes& most, const Prepare& prepare) {
  using T = typename Model::Value;
  const int64_t models = population.models(), steps = population.steps();
  const Tensor losses = allocate(population.learning_rates.sizes(), kDtype<T>);
  std::vector<std::vector<T*>> parameters, states;
  std::vector<std::vector<Rates<T>>> rates(models);
  std::vector<cpu::Training<Model>> trainings;
  for (int64_t i = 0; i < models; ++i) {
    about_model(population, i, [&] {
      const TrainingOptions& options = population.options[i];
      trainings.push_back(
          {.model = make_model<Model>(population.shape, options.softcap), .update = update_as<T>(options)});
    });
    parameters.push_back(write_pointers<T>(population.parameters_of(i)));
    states.push_back(write_pointers<T>(population.state_of(i)));
  }
  check_disjoint(population);
  for_each_model(population, [&](int64_t i) {
    rates[i] = rates_as<T>(population.options[i], population.learning_rates, i);
    trainings[i].parameters = parameters[i];
    trainings[i].state = states[i];
    trainings[i].rates = rates[i].data();
    trainings[i].losses = losses.mutable_data_ptr<T>() + i * steps;
  });
  const cpu::Turns turns(models, trainings[0].model.shares(most));
  cpu::train<Model>(trainings, steps, turns, most, prepare(turns));
  if (steps > 0) took_branch_of(trainings[0].model);
  return losses;
}

}  // namespace charlm
