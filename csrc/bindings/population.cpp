#include "bindings/population.h"

#include <algorithm>

namespace charlm {
namespace {

constexpr int64_t kOptions = 7;

Population checked(Population population, const Tensor& contexts) {
  check_contexts(contexts);
  const int64_t models = population.models();
  check(population.parameters.size() % models == 0, "parameters must be as many tensors for each of M=", models,
        " models, got ", population.parameters.size());
  check(population.state.size() % models == 0, "optimizer_state must be as many tensors for each of M=", models,
        " models, got ", population.state.size());
  for (int64_t i = 0; i < models; ++i) {
    about_model(population, i, [&] {
      const Tensors parameters = population.parameters_of(i), first = population.parameters_of(0);
      const TrainingOptions& options = checked_options(population.options[i]);
      const ModelShape shape = check_parameters(parameters, population.state_of(i), options, contexts.size(1));
      if (i == 0) population.shape = shape;
      for (size_t p = 0; p < parameters.size(); ++p) {
        check_matches(parameter_name(shape, p), parameters[p], "model 0", first[0]);
        check_shape(parameter_name(shape, p), parameters[p], first[p].sizes(), "of that of model 0 = ");
      }
    });
  }
  check_floating("learning_rates", population.learning_rates);
  population.learning_rates = contiguous_as(on_cpu("learning_rates", population.learning_rates), ScalarType::Double);
  return population;
}

}  // namespace

Population checked_model(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor& contexts,
                         const Tensor& learning_rates, const TrainingOptions& options) {
  check(learning_rates.dim() == 1, "learning_rates must have shape (S,), got ", ShapeString(learning_rates));
  return checked({{}, std::move(parameters), std::move(state), {options}, learning_rates, true}, contexts);
}

Population checked_population(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor& contexts,
                              const Tensor& learning_rates, int64_t optimizer, const Tensor& options,
                              const Tensor& first_steps) {
  check(options.dim() == 2 && options.size(0) > 0 && options.size(1) == kOptions, "options must have shape (M, ",
        kOptions, ") for at least one model, got ", ShapeString(options));
  check_floating("options", options);
  const int64_t models = options.size(0);
  check_shape("first_steps", first_steps, {{"M", models}});
  check_integral("first_steps", first_steps);
  check(learning_rates.dim() == 2 && learning_rates.size(0) == models, "learning_rates must have shape (M=", models,
        ", S), got ", ShapeString(learning_rates));
  const Tensor numbers = contiguous_as(on_cpu("options", options), ScalarType::Double);
  const Tensor steps = contiguous_as(on_cpu("first_steps", first_steps), ScalarType::Long);
  Population population{{}, std::move(parameters), std::move(state), {}, learning_rates, false};
  for (int64_t i = 0; i < models; ++i) {
    const double* of = numbers.const_data_ptr<double>() + i * kOptions;
    population.options.push_back({static_cast<OptimizerKind>(optimizer), of[0], of[1], of[2], of[3], of[4], of[5],
                                  of[6], steps.const_data_ptr<int64_t>()[i]});
  }
  return checked(std::move(population), contexts);
}

void check_disjoint(const Population& population) {
  if (population.is_one) return;
  struct Memory {
    const char *begin, *end;
    int64_t model;
  };
  std::vector<Memory> memory;
  for (int64_t i = 0; i < population.models(); ++i) {
    for (const Tensors tensors : {population.parameters_of(i), population.state_of(i)}) {
      for (const Tensor& tensor : tensors) {
        const auto* begin = static_cast<const char*>(tensor.const_data_ptr());
        memory.push_back({begin, begin + tensor.numel() * tensor.element_size(), i});
      }
    }
  }
  std::sort(memory.begin(), memory.end(), [](const Memory& a, const Memory& b) { return a.begin < b.begin; });
  for (size_t j = 1; j < memory.size(); ++j) {
    check(memory[j].begin >= memory[j - 1].end, "parameters and optimizer_state must not share memory, but tensors of ",
          "model ", std::min(memory[j - 1].model, memory[j].model), " and model ",
          std::max(memory[j - 1].model, memory[j].model), " do");
  }
}

}  // namespace charlm
