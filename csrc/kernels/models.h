// Models as what trains and evaluates them has them: parameters in one array, and a step on a batch.
#pragma once

#include <atomic>
#include <span>

#include "kernels/bigram.h"
#include "kernels/host_library.h"
#include "kernels/mlp_step.h"
#include "kernels/model_shape.h"

namespace charlm {

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
  // The most threads that a step is shared out to.
  int64_t shares(const BatchSizes& most) const {
    const MlpTiling tiling(step_.layout, most.rows);
    return tiling.slots > tiling.class_slots ? tiling.slots : tiling.class_slots;
  }

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
  // Without a softcap: it is 0.
  BigramModel(const ModelShape& shape, T) : kernels_(select<BigramKernels<T>>()) {
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
  int64_t shares(const BatchSizes&) const { return 1; }

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

// Which of several models are trained when.
struct Turns {
  int64_t models;
  int64_t together;  // the first so many, each by the thread that is free next; then the others, each by all threads
  int64_t slots;     // models at a time

  // `shares`: the most threads that a step is shared out to. A last round of few models would leave most threads
  // without work, and may have their help instead; a full round is faster without, as nobody waits for a part of a
  // step.
  Turns(int64_t models, int64_t shares) : models(models) {
    const int64_t threads = host::threads(), rest = models % threads;
    const bool shared = shares > 1 && 2 * rest <= (shares < threads ? shares : threads);
    together = shared ? models - rest : models;
    slots = together < 1 ? 1 : together < threads ? together : threads;
  }

  // train(model, slot); at any time each slot has one model.
  template <typename Train>
  void run(const Train& train) const {
    std::atomic<int64_t> next = 0;
    for_each(slots, [&](int64_t slot) {
      for (int64_t model = next++; model < together; model = next++) train(model, slot);
    });
    for (int64_t model = together; model < models; ++model) train(model, int64_t{0});
  }
};

// What is trained of a model: all of it is written back when its last step is done. In cache lines of its own, as the
// next one is mostly another thread's.
template <typename Model>
struct alignas(64) Training {
  using T = typename Model::Value;

  Model model;
  Pointers<T> parameters, state;
  Update<T> update;       // but for rates and state
  const Rates<T>* rates;  // (steps,)
  T* losses;              // (steps,) those before each step
};

// Trains models of one shape in place: batches(i, slot) returns the function whose value at s is the batch of step s of
// model i, in memory of the slot. Nothing is allocated once the first model is being trained.
template <typename Model, typename Batches>
void train(std::span<Training<Model>> trainings, int64_t steps, const Turns& turns, const BatchSizes& most,
           const Batches& batches) {
  using T = typename Model::Value;
  const Training<Model>& first = trainings.front();
  const int64_t tensors = first.parameters.size(), states = first.state.size() / tensors;
  const int64_t size = first.model.size(), all = whole_lines<T>(size * (2 + states));
  const int64_t space = whole_lines<T>(first.model.workspace(most));
  const ZeroedWorkspace<T> memory(turns.slots * all);
  const Workspace<T> workspace(turns.slots * space);
  turns.run([&](int64_t i, int64_t slot) {
    Training<Model>& training = trainings[i];
    Model& model = training.model;
    const auto flat = [&](int64_t part) { return memory.data() + slot * all + part * size; };
    const auto state_at = [&](int64_t part) { return training.state.subspan(part * tensors, tensors); };
    model.pack(training.parameters, flat(0));
    for (int64_t part = 0; part < states; ++part) model.pack(state_at(part), flat(2 + part));
    training.update.state1 = flat(2);
    training.update.state2 = flat(3);
    auto batch_at = batches(i, slot);
    for (int64_t s = 0; s < steps; ++s) {
      training.update.rates = training.rates[s];
      training.losses[s] =
          static_cast<T>(model.step(batch_at(s), flat(0), flat(1), &training.update, workspace.data() + slot * space));
    }
    model.unpack(flat(0), training.parameters);
    for (int64_t part = 0; part < states; ++part) model.unpack(flat(2 + part), state_at(part));
  });
}

}  // namespace cpu

}  // namespace charlm
