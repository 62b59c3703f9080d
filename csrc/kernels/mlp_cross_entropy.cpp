#include "kernels/mlp_cross_entropy.h"

#include <cmath>

namespace charlm::cpu {
namespace {

// Without those whose target is ignored; `example` becomes which example each of them is.
int64_t drop_ignored(Example* pairs, int64_t count, int64_t* example) {
  int64_t kept = 0;
  for (int64_t n = 0; n < count; ++n) {
    if (pairs[n].target == kIgnored) continue;
    pairs[kept] = pairs[n];
    example[kept++] = n;
  }
  return kept;
}

}  // namespace

template <typename T>
double mlp_cross_entropy(const MlpCrossEntropy<T>& problem, MlpModel<T>* model) {
  const Workspace<int64_t> example(problem.examples);
  const int64_t count = drop_ignored(problem.pairs, problem.examples, example.data());
  const Workspace<int32_t> memory(batch_memory(problem.contexts, problem.examples));
  BatchBuilder builder(problem.contexts, problem.examples, memory.data());
  ContextBatch<T> batch = builder.build<T>(problem.pairs, count);
  if (!problem.mean) batch.weight = 1;

  const int32_t* entry = builder.entry_of_example();
  const Workspace<T> entries(2 * count);
  T *entry_losses = entries.data(), *entry_weights = entry_losses + count;
  if (problem.row_scale != nullptr) {
    for (int64_t i = 0; i < count; ++i) entry_weights[entry[i]] = problem.row_scale[example.data()[i]];
    batch.weights = entry_weights;
  } else {
    batch.weight *= problem.scale;
  }

  model->set_entry_losses(entry_losses);
  const double loss = evaluate(model, problem.parameters, batch, problem.contexts.context_length, problem.gradients);
  if (problem.row_loss != nullptr) {
    fill_zero(problem.row_loss, problem.examples * sizeof(T));
    for (int64_t i = 0; i < count; ++i) problem.row_loss[example.data()[i]] = entry_losses[entry[i]];
  }
  return problem.mean && count == 0 ? static_cast<double>(NAN) : loss;
}

template double mlp_cross_entropy(const MlpCrossEntropy<float>&, MlpModel<float>*);
template double mlp_cross_entropy(const MlpCrossEntropy<double>&, MlpModel<double>*);

}  // namespace charlm::cpu
