// Many training steps in one call, in place on torch's tensors.
#include "bindings/tokens.h"
#include "bindings/training.h"

namespace charlm {
namespace {

void check_contexts(const Tensor& contexts) {
  check(contexts.dim() == 2 && contexts.size(1) > 0, "contexts must have shape (N, T), got ", ShapeString(contexts));
}

Tensor check_learning_rates(const Tensor& learning_rates) {
  check(learning_rates.dim() == 1, "learning_rates must have shape (S,), got ", ShapeString(learning_rates));
  check_floating("learning_rates", learning_rates);
  check_on_cpu("learning_rates", learning_rates);
  return contiguous_as(learning_rates, ScalarType::Double);
}

int64_t table_row_limit(const ModelShape& shape, int64_t rows) {
  return (rows < shape.vocab_size ? rows : shape.vocab_size) * shape.context_length;
}

// Contexts of one token are numbered by it: a bigram's step wants each row of its matrix once.
void number_by_token(ExampleTensors* data, int64_t count) {
  for (int64_t n = 0; n < count; ++n) data->pairs[n].context = data->examples.contexts[data->pairs[n].context];
  const int64_t size = data->examples.vocab_size;
  data->contexts = allocate({size, 1}, ScalarType::Int);
  for (int64_t v = 0; v < size; ++v) data->contexts.mutable_data_ptr<int32_t>()[v] = static_cast<int32_t>(v);
  data->examples.contexts = data->contexts.const_data_ptr<int32_t>();
  data->examples.num_contexts = size;
}

void check_distinct(const int32_t* tokens, int64_t count, int64_t vocab_size) {
  std::vector<bool> seen(vocab_size);
  for (int64_t u = 0; u < count; ++u) {
    check(!seen[tokens[u]], "contexts[", u, "] = ", tokens[u], " occurs twice: each context must be there once");
    seen[tokens[u]] = true;
  }
}

// Calls function with a Training of the model's kind and dtype.
template <typename Function>
void with_training(Tensors parameters, Tensors state, const ModelShape& shape, const TrainingOptions& options,
                   const Function& function) {
  const FlushDenormals flush;
  dispatch_compute_type(parameters[0], [&](auto type) {
    using T = decltype(type);
    if (shape.is_bigram()) {
      Training<T, BigramModel<T>> training(parameters, state, shape, options);
      function(training, type);
    } else {
      Training<T, MlpModel<T>> training(parameters, state, shape, options);
      function(training, type);
    }
  });
}

Tensor train_steps(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                   const Tensor targets, const OptionalTensor context_index, const Tensor batch_indices,
                   const Tensor learning_rates, int64_t optimizer, double momentum, double beta1, double beta2,
                   double eps, double weight_decay, double max_grad_norm, double softcap, int64_t first_step) {
  const TrainingOptions options{static_cast<OptimizerKind>(optimizer),
                                momentum,
                                beta1,
                                beta2,
                                eps,
                                weight_decay,
                                max_grad_norm,
                                softcap,
                                first_step};
  check_options(options);
  check_contexts(contexts);
  const ModelShape shape = check_parameters(parameters, state, options, contexts.size(1));
  const Tensor rates = check_learning_rates(learning_rates);
  const int64_t steps = rates.size(0);
  check(batch_indices.dim() == 2 && batch_indices.size(0) == steps && batch_indices.size(1) > 0,
        "batch_indices must have shape (S=", steps, ", B), got ", ShapeString(batch_indices));
  check_integral("batch_indices", batch_indices);
  check_on_cpu("batch_indices", batch_indices);
  ExampleTensors data = read_examples("contexts", contexts, "targets", targets, context_index, shape.vocab_size);
  if (shape.is_bigram()) number_by_token(&data, targets.size(0));
  const int64_t size = batch_indices.size(1);
  const Tensor indices = contiguous_as(batch_indices, ScalarType::Long);
  check_range("batch_indices", indices.const_data_ptr<int64_t>(), indices.numel(), size, targets.size(0), "examples");

  const int64_t rows = size < data.examples.num_contexts ? size : data.examples.num_contexts;
  const std::unique_ptr<int32_t[]> memory(new int32_t[batch_memory(data.examples, size)]);
  BatchBuilder builder(data.examples, size, memory.get());
  const Tensor losses = allocate({steps}, parameters[0].scalar_type());
  with_training(parameters, state, shape, options, [&](auto& training, auto type) {
    training.run(rates, losses, rows, table_row_limit(shape, rows), size, [&](int64_t s) {
      const int64_t* row = indices.const_data_ptr<int64_t>() + s * size;
      const auto batch = builder.build<decltype(type)>(row, size);
      if (s + 1 < steps) builder.prefetch(row + size, size);
      return batch;
    });
  });
  return losses;
}

// The same batch in every step: distinct contexts, whose targets and their counts are compressed rows.
Tensor train_full_steps(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                        const Tensor row_ptr, const Tensor targets, const Tensor counts, const Tensor learning_rates,
                        int64_t optimizer, double momentum, double beta1, double beta2, double eps, double weight_decay,
                        double max_grad_norm, double softcap, int64_t first_step) {
  const TrainingOptions options{static_cast<OptimizerKind>(optimizer),
                                momentum,
                                beta1,
                                beta2,
                                eps,
                                weight_decay,
                                max_grad_norm,
                                softcap,
                                first_step};
  check_options(options);
  check_contexts(contexts);
  const ModelShape shape = check_parameters(parameters, state, options, contexts.size(1));
  const Tensor rates = check_learning_rates(learning_rates);
  const int64_t rows = contexts.size(0), entries = targets.numel();
  check(rows > 0, "contexts must have at least one row");
  check(targets.dim() == 1 && entries < (int64_t{1} << 31), "targets must have shape (entries,), got ",
        ShapeString(targets));
  check(counts.dim() == 1 && counts.size(0) == entries, "counts must have the shape of targets ", ShapeString(targets),
        ", got ", ShapeString(counts));
  check(row_ptr.dim() == 1 && row_ptr.size(0) == rows + 1, "row_ptr must have shape (U+1=", rows + 1, ",), got ",
        ShapeString(row_ptr));
  const Tensor tokens = checked_int32("contexts", contexts, contexts.size(1), shape.vocab_size, "tokens");
  if (shape.is_bigram()) check_distinct(tokens.const_data_ptr<int32_t>(), rows, shape.vocab_size);
  const Tensor classes = checked_int32("targets", targets, 0, shape.vocab_size, "classes");
  const Tensor begin = checked_int32("row_ptr", row_ptr, 0, entries + 1, "entries");
  const int32_t* entry_begin = begin.const_data_ptr<int32_t>();
  bool ascends = entry_begin[0] == 0 && entry_begin[rows] == entries;
  for (int64_t u = 0; ascends && u < rows; ++u) ascends = entry_begin[u] <= entry_begin[u + 1];
  check(ascends, "row_ptr must ascend from 0 to the number of entries, ", entries);
  check_integral("counts", counts);
  check_on_cpu("counts", counts);
  const Tensor values = contiguous_as(counts, ScalarType::Double);
  double total = 0;
  for (int64_t e = 0; e < entries; ++e) total += values.const_data_ptr<double>()[e];
  check(total > 0, "counts must have a positive sum, got ", total);

  const Examples examples{contexts.size(1), shape.vocab_size, rows, tokens.const_data_ptr<int32_t>(), nullptr};
  const std::unique_ptr<int32_t[]> memory(new int32_t[batch_memory(examples, rows)]);
  BatchBuilder builder(examples, rows, memory.get());
  const Tensor losses = allocate({rates.size(0)}, parameters[0].scalar_type());
  with_training(parameters, state, shape, options, [&](auto& training, auto type) {
    using T = decltype(type);
    const std::unique_ptr<T[]> weights(new T[entries]);
    for (int64_t e = 0; e < entries; ++e) {
      weights[e] = static_cast<T>(values.const_data_ptr<double>()[e] / total);
    }
    const std::unique_ptr<int32_t[]> entry_rows(new int32_t[entries]);
    const MlpBatch<T> batch =
        builder.build_all<T>(entry_begin, classes.const_data_ptr<int32_t>(), weights.get(), entry_rows.get());
    training.run(rates, losses, rows, batch.table_rows(shape.context_length), entries, [&](int64_t) { return batch; });
  });
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, library) {
  library.impl("train_steps", TORCH_BOX(&train_steps));
  library.impl("train_full_steps", TORCH_BOX(&train_full_steps));
}

}  // namespace charlm
