// All examples at once, as distinct contexts whose targets and their counts are compressed rows: steps along the exact
// gradient of one model or several, and the loss alone.
#include "bindings/tokens.h"
#include "bindings/training_ops.h"

namespace charlm {
namespace {

// The checked arguments, and the memory of the batch that they are.
class FullBatch {
 public:
  FullBatch(const Tensor& contexts, const Tensor& row_ptr, const Tensor& targets, const Tensor& counts,
            const ModelShape& shape)
      : rows_(contexts.size(0)), entries_(targets.numel()) {
    constexpr int64_t kLimit = int64_t{1} << 31;  // rows and entries are numbered in 32 bits
    check(rows_ > 0 && rows_ < kLimit, "contexts must have at least one row, and fewer than 2^31, got ",
          ShapeString(contexts));
    check_sizes({{"U", rows_}, {"T", contexts.size(1)}});
    check_table_rows(shape, rows_);
    check(targets.dim() == 1 && entries_ < kLimit, "targets must have shape (entries,), fewer than 2^31, got ",
          ShapeString(targets));
    check(counts.sizes().equals(targets.sizes()), "counts must have the shape of targets ", ShapeString(targets),
          ", got ", ShapeString(counts));
    check_shape("row_ptr", row_ptr, {{"U+1", rows_ + 1}});
    contexts_ = checked_int32("contexts", contexts, shape.vocab_size, "tokens");
    targets_ = checked_int32("targets", targets, shape.vocab_size, "classes");
    row_ptr_ = checked_int32("row_ptr", row_ptr, entries_ + 1, "entries");
    const int32_t* begin = row_ptr_.const_data_ptr<int32_t>();
    bool ascends = begin[0] == 0 && begin[rows_] == entries_;
    for (int64_t u = 0; ascends && u < rows_; ++u) ascends = begin[u] <= begin[u + 1];
    check(ascends, "row_ptr must ascend from 0 to the number of entries, ", entries_);
    check_integral("counts", counts);
    check_on_cpu("counts", counts);
    counts_ = contiguous_as(counts, ScalarType::Double);
    for (int64_t e = 0; e < entries_; ++e) total_ += counts_.const_data_ptr<double>()[e];
    check(total_ > 0, "counts must have a positive sum, got ", total_);
    const ContextTable table{contexts.size(1), shape.vocab_size, rows_, contexts_.const_data_ptr<int32_t>()};
    memory_.emplace(batch_memory(table, rows_));
    entry_rows_.emplace(entries_);
    builder_.emplace(table, rows_, memory_->data());
  }

  int64_t entries() const { return entries_; }

  // A bigram's step changes the row of its matrix that belongs to a context: one context must not change another's.
  void check_distinct_tokens(int64_t vocab_size) const {
    const int32_t* tokens = contexts_.const_data_ptr<int32_t>();
    const ZeroedWorkspace<bool> seen(vocab_size);
    for (int64_t u = 0; u < rows_; ++u) {
      bool& was_seen = seen.data()[tokens[u]];
      check(!was_seen, "contexts[", u, "] = ", tokens[u], " occurs twice: each context must be there once");
      was_seen = true;
    }
  }

  // `weights` holds entries() values, and as long as the batch is used.
  template <typename T>
  ContextBatch<T> build(T* weights) {
    const double* counts = counts_.const_data_ptr<double>();
    for (int64_t e = 0; e < entries_; ++e) weights[e] = static_cast<T>(counts[e] / total_);
    return builder_->build_all<T>(row_ptr_.const_data_ptr<int32_t>(), targets_.const_data_ptr<int32_t>(), weights,
                                  entry_rows_->data());
  }

 private:
  int64_t rows_, entries_;
  double total_ = 0;
  Tensor contexts_, targets_, row_ptr_, counts_;
  std::optional<Workspace<int32_t>> memory_, entry_rows_;
  std::optional<BatchBuilder> builder_;
};

Tensor train_on_all(const Population& population, const Tensor& contexts, const Tensor& row_ptr, const Tensor& targets,
                    const Tensor& counts) {
  const ModelShape& shape = population.shape;
  FullBatch full(contexts, row_ptr, targets, counts, shape);
  if (shape.is_bigram()) full.check_distinct_tokens(shape.vocab_size);
  return with_model_type(population.parameters[0], shape, [&]<typename Model>(Model*) {
    const Workspace<typename Model::Value> weights(full.entries());
    const auto batch = full.build(weights.data());
    const auto sizes = cpu::BatchSizes::of(batch, shape.context_length);
    return train_in_place<Model>(population, sizes, [&](const cpu::Turns&) {
      return [&](int64_t, int64_t) { return [&](int64_t) { return batch; }; };
    });
  });
}

Tensor evaluate_full(std::vector<Tensor> parameters, const Tensor contexts, const Tensor row_ptr, const Tensor targets,
                     const Tensor counts, double softcap) {
  const TrainingOptions options = checked_options({.softcap = softcap});
  check_contexts(contexts);
  const ModelShape shape = check_parameters(parameters, {}, options, contexts.size(1));
  FullBatch full(contexts, row_ptr, targets, counts, shape);
  const Tensor loss = allocate({}, ScalarType::Double);
  with_model_type(parameters[0], shape, [&]<typename Model>(Model*) {
    using T = typename Model::Value;
    Model model = make_model<Model>(shape, softcap);
    const Workspace<T> weights(full.entries());
    *loss.mutable_data_ptr<double>() =
        cpu::evaluate<T>(&model, read_pointers<T>(parameters), full.build(weights.data()), shape.context_length, {});
    took_branch_of(model);
  });
  return loss;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  FullBatchOps<train_on_all>::add_to(ops);
  ops.impl("evaluate_full", TORCH_BOX(&evaluate_full));
}

}  // namespace charlm
