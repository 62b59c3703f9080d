// Models as what trains and evaluates them has them: parameters in one array, and a step on a batch.
#pragma once

#include <span>

#include "kernels/bigram.h"
#include "kernels/host_library.h"
#include "kernels/mlp_step.h"

namespace charlm {

// Sizes of a model. A bigram has one parameter and no hidden layer.
struct ModelShape {
  int64_t vocab_size = 0, context_length = 0, embedding_dim = 0, hidden_dim = 0;
  bool direct = false;

  bool is_bigram() const { return hidden_dim == 0; }
  // The most tokens, each at a position, that so many contexts have between them.
  int64_t table_rows(int64_t contexts) const {
    return (contexts < vocab_size ? contexts : vocab_size) * context_length;
  }
};

namespace cpu {

// Each parameter of a model, or its gradient or state, contiguous and in the order of MlpTensors.
template <typename T>
using Pointers = std::span<T* const>;

// Of a batch, or of the largest of many: distinct contexts, table rows, entries.
struct BatchSizes {
  int64_t rows, table_rows, entries;

  template <typename T>
  static BatchSizes of(const ContextBatch<T>& batch, int64_t context_length) {
    return {batch.rows, batch.table_rows(context_length), batch.entry_begin[batch.rows]};
  }
};

template <typename T>
class MlpModel {
 public:
  using Value = T;
  MlpModel(const ModelShape& shape, T softcap) : kernels_(select<MlpKernels<T>>()) {
    step_.layout =
        kernels_.layout(shape.vocab_size, shape.context_length, shape.embedding_dim, shape.hidden_dim, shape.direct);
    step_.softcap = softcap;
  }

  int64_t size() const { return step_.layout.size(); }
  int64_t workspace(const BatchSizes& most) const {
    return kernels_.workspace(step_.layout, most.rows, most.table_rows, most.entries);
  }
  void pack(Pointers<const T> tensors, T* flat) const { kernels_.pack(step_.layout, named(tensors), flat); }
  void unpack(const T* flat, Pointers<T> tensors) const { kernels_.unpack(step_.layout, flat, named(tensors)); }

  // (entries,) of every later step: -log p of each entry's target.
  void set_entry_losses(T* entry_losses) { step_.entry_losses = entry_losses; }
  // The loss before the update. A null gradient, a null update: see MlpStep.
  double step(const ContextBatch<T>& batch, T* parameters, T* gradient, const Update<T>* update, T* workspace) {
    step_.batch = batch;
    step_.parameters = parameters;
    step_.gradient = gradient;
    step_.update = update;
    step_.workspace = workspace;
    return kernels_.step(step_);
  }
  const MlpStep<T>& last_step() const { return step_; }

 private:
  template <typename U>
  static MlpTensors<U> named(Pointers<U> at) {
    return {at[0], at[1], at[2], at[3], at[4], at.size() > 5 ? at[5] : nullptr};
  }

  const MlpKernels<T>& kernels_;
  MlpStep<T> step_;
};

template <typename T>
class BigramModel {
 public:
  using Value = T;
  explicit BigramModel(const ModelShape& shape) : kernels_(select<BigramKernels<T>>()) {
    step_.classes = kernels_.classes(shape.vocab_size);
  }

  int64_t size() const { return step_.classes.size * step_.classes.padded(); }
  int64_t workspace(const BatchSizes& most) const { return kernels_.workspace(step_.classes, most.entries); }
  void pack(Pointers<const T> tensors, T* flat) const {
    fill_zero(flat, size() * sizeof(T));  // between the rows
    copy_rows(tensors[0], step_.classes.size, flat, step_.classes.padded());
  }
  void unpack(const T* flat, Pointers<T> tensors) const {
    copy_rows(flat, step_.classes.padded(), tensors[0], step_.classes.size);
  }

  double step(const ContextBatch<T>& batch, T* parameters, T* gradient, const Update<T>* update, T* workspace) {
    step_.batch = batch;
    step_.weight = parameters;
    step_.gradient = gradient;
    step_.update = update;
    step_.workspace = workspace;
    return kernels_.step(step_);
  }
  const BigramStep<T>& last_step() const { return step_; }

 private:
  void copy_rows(const T* in, int64_t in_stride, T* out, int64_t out_stride) const {
    const int64_t size = step_.classes.size;
    for (int64_t v = 0; v < size; ++v) copy_bytes(out + v * out_stride, in + v * in_stride, size * sizeof(T));
  }

  const BigramKernels<T>& kernels_;
  BigramStep<T> step_;
};

// The loss of a batch, and its gradient unless `gradients` is empty.
template <typename T, typename Model>
double evaluate(Model* model, Pointers<const T> parameters, const ContextBatch<T>& batch, int64_t context_length,
                Pointers<T> gradients) {
  const bool has_gradient = !gradients.empty();
  const Workspace<T> packed(model->size());
  const ZeroedWorkspace<T> gradient(has_gradient ? model->size() : 0);
  const Workspace<T> workspace(model->workspace(BatchSizes::of(batch, context_length)));
  model->pack(parameters, packed.data());
  const double loss =
      model->step(batch, packed.data(), has_gradient ? gradient.data() : nullptr, nullptr, workspace.data());
  if (has_gradient) model->unpack(gradient.data(), gradients);
  return loss;
}

// Steps in place, one after the other: prepare(s) returns the batch of step s, and may change the update for it. losses
// (steps,) are those before each step. Parameters and state are packed first, and written back at the end.
template <typename T, typename Model, typename Prepare>
void train(Model* model, Pointers<T> parameters, Pointers<T> state, Update<T>* update, int64_t steps,
           const BatchSizes& most, T* losses, const Prepare& prepare) {
  const auto states = static_cast<int64_t>(state.size() / parameters.size());
  const ZeroedWorkspace<T> memory(model->size() * (2 + states));
  const auto flat = [&](int64_t i) { return memory.data() + i * model->size(); };
  const auto state_at = [&](int64_t i) { return state.subspan(i * parameters.size(), parameters.size()); };
  model->pack(parameters, flat(0));
  for (int64_t i = 0; i < states; ++i) model->pack(state_at(i), flat(2 + i));
  update->state1 = flat(2);
  update->state2 = flat(3);
  const Workspace<T> workspace(model->workspace(most));
  for (int64_t s = 0; s < steps; ++s) {
    losses[s] = static_cast<T>(model->step(prepare(s), flat(0), flat(1), update, workspace.data()));
  }
  model->unpack(flat(0), parameters);
  for (int64_t i = 0; i < states; ++i) model->unpack(flat(2 + i), state_at(i));
}

}  // namespace cpu

}  // namespace charlm
