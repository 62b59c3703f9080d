// Many training steps of one model or several in one call, in place on torch's tensors.
#include <algorithm>

#include "bindings/tokens.h"
#include "bindings/training_ops.h"

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

// Of each model, the steps on its own batches: batch_indices (M, S, B), or (S, B) of one alone.
Tensor train_on_batches(const Population& population, const Tensor& contexts, const Tensor& targets,
                        const OptionalTensor& context_index, const Tensor& batch_indices) {
  const ModelShape& shape = population.shape;
  const int64_t size = batch_indices.size(batch_indices.dim() - 1), count = population.steps() * size;
  const int64_t limit = context_index.has_value() ? context_index->numel() : contexts.size(0);
  const Tensor indices = checked_int64("batch_indices", batch_indices, limit, "examples");
  std::vector<std::optional<Examples>> examples(population.models());
  for_each_model(population, [&](int64_t i) {
    examples[i].emplace(read_examples("contexts", contexts, "targets", targets, context_index, shape.vocab_size,
                                      indices.const_data_ptr<int64_t>() + i * count, count));
    if (shape.is_bigram()) number_by_token(&*examples[i], count);
  });

  int64_t rows = 0, most_memory = 0;
  for (const auto& data : examples) {
    rows = std::max(rows, std::min(size, data->contexts.rows));
    most_memory = std::max(most_memory, whole_lines<int32_t>(batch_memory(data->contexts, size)));
  }
  check_table_rows(shape, rows);
  const cpu::BatchSizes most{rows, shape.table_rows(rows), size};
  return with_model_type(population.parameters[0], shape, [&]<typename Model>(Model*) {
    return train_in_place<Model>(population, most, [&](const cpu::Turns& turns) {
      return [&, memory = Workspace<int32_t>(turns.slots * most_memory)](int64_t i, int64_t slot) {
        const Examples& data = *examples[i];
        return [&data, size,
                builder = BatchBuilder(data.contexts, size, memory.data() + slot * most_memory)](int64_t s) mutable {
          return builder.build<typename Model::Value>(data.pairs.data() + s * size, size);
        };
      };
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) { BatchOps<train_on_batches>::add_to(ops); }

}  // namespace charlm
