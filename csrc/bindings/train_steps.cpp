// Many training steps in one call, in place on torch's tensors.
#include "bindings/tokens.h"
#include "bindings/training.h"

namespace charlm {
namespace {

// Contexts of one token are numbered by it: a bigram's step wants each row of its matrix once.
void number_by_token(Examples* data, int64_t count) {
  Example* pairs = data->pairs.data();
  for (int64_t n = 0; n < count; ++n) pairs[n].context = data->contexts.tokens[pairs[n].context];
  const int64_t size = data->contexts.vocab_size;
  data->tokens = allocate({size, 1}, ScalarType::Int);
  for (int64_t v = 0; v < size; ++v) data->tokens.mutable_data_ptr<int32_t>()[v] = static_cast<int32_t>(v);
  data->contexts.tokens = data->tokens.const_data_ptr<int32_t>();
  data->contexts.rows = size;
}

Tensor train_steps(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                   const Tensor targets, const OptionalTensor context_index, const Tensor batch_indices,
                   const Tensor learning_rates, int64_t optimizer, double momentum, double beta1, double beta2,
                   double eps, double weight_decay, double max_grad_norm, double softcap, int64_t first_step) {
  const TrainingOptions options = checked_options({static_cast<OptimizerKind>(optimizer), momentum, beta1, beta2, eps,
                                                   weight_decay, max_grad_norm, softcap, first_step});
  check_contexts(contexts);
  const ModelShape shape = check_parameters(parameters, state, options, contexts.size(1));
  const Tensor rates = checked_learning_rates(learning_rates);
  const int64_t steps = rates.size(0);
  check(batch_indices.dim() == 2 && batch_indices.size(0) == steps && batch_indices.size(1) > 0,
        "batch_indices must have shape (S=", steps, ", B), got ", ShapeString(batch_indices));
  const int64_t size = batch_indices.size(1), count = batch_indices.numel();
  const int64_t limit = context_index.has_value() ? context_index->numel() : contexts.size(0);
  const Tensor indices = checked_int64("batch_indices", batch_indices, limit, "examples");
  const auto* examples = indices.const_data_ptr<int64_t>();
  Examples data =
      read_examples("contexts", contexts, "targets", targets, context_index, shape.vocab_size, examples, count);
  if (shape.is_bigram()) number_by_token(&data, count);

  const int64_t rows = size < data.contexts.rows ? size : data.contexts.rows;
  check_table_rows(shape, rows);
  const Workspace<int32_t> memory(batch_memory(data.contexts, size));
  BatchBuilder builder(data.contexts, size, memory.data());
  const cpu::BatchSizes most{rows, shape.table_rows(rows), size};
  return with_model(parameters, shape, softcap, [&]<typename Model>(Model* model) {
    using T = typename Model::Value;
    return train_in_place(model, parameters, state, options, rates, most,
                          [&](int64_t s) { return builder.build<T>(data.pairs.data() + s * size, size); });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) { ops.impl("train_steps", TORCH_BOX(&train_steps)); }

}  // namespace charlm
