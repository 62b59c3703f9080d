// What training any model in many steps takes: its optimizer's options, the packed parameters and state, the loop.
#pragma once

#include <cmath>
#include <span>

#include "bindings/branches.h"
#include "bindings/checks.h"
#include "kernels/bigram.h"
#include "kernels/denormals.h"
#include "kernels/host_library.h"
#include "kernels/mlp_step.h"

namespace charlm {

struct TrainingOptions {
  OptimizerKind kind = OptimizerKind::kSgd;
  double momentum = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0, max_grad_norm = 0, softcap = 0;
  int64_t first_step = 0;

  // Tensors of optimizer state for each parameter.
  int64_t states() const { return kind == OptimizerKind::kAdamw ? 2 : momentum != 0 ? 1 : 0; }
};
// Throws ValueError unless each is in its range.
TrainingOptions checked_options(const TrainingOptions& options);

using Tensors = std::span<const Tensor>;

// Sizes of a model, from its parameters. A bigram has one parameter and no hidden layer.
struct ModelShape {
  int64_t vocab_size = 0, context_length = 0, embedding_dim = 0, hidden_dim = 0;
  bool direct = false;

  bool is_bigram() const { return hidden_dim == 0; }
  // The most tokens, each at a position, that so many contexts have between them.
  int64_t table_rows(int64_t contexts) const {
    return (contexts < vocab_size ? contexts : vocab_size) * context_length;
  }
};
// They are numbered in 32 bits.
void check_table_rows(const ModelShape& shape, int64_t contexts);
ModelShape check_parameters(Tensors parameters, Tensors state, const TrainingOptions& options, int64_t context_length);
void check_contexts(const Tensor& contexts);
Tensor checked_learning_rates(const Tensor& learning_rates);

// The branches of a step, for took_branch.
const char* mlp_branch(const MlpTiling& tiling, UpdateTime time, bool wants_gradient, bool is_sparse);
const char* bigram_branch(UpdateTime time);

template <typename T>
MlpTensors<T> mlp_pointers(Tensors tensors) {
  const auto at = [&](size_t i) { return static_cast<T*>(const_cast<void*>(tensors[i].const_data_ptr())); };
  return {at(0), at(1), at(2), at(3), at(4), tensors.size() > 5 ? at(5) : nullptr};
}

// Runs the parts of a kernel on torch's threads.
inline void run_parallel(int64_t count, Parallel::Body body, const void* context) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

template <typename T>
class MlpModel {
 public:
  explicit MlpModel(const ModelShape& shape, double softcap) : kernels_(cpu::select<cpu::MlpKernels<T>>()) {
    step_.layout =
        kernels_.layout(shape.vocab_size, shape.context_length, shape.embedding_dim, shape.hidden_dim, shape.direct);
    step_.softcap = option_as<T>("softcap", softcap);
    step_.parallel.run = run_parallel;
  }
  int64_t size() const { return step_.layout.size(); }
  int64_t workspace(int64_t rows, int64_t table_rows, int64_t entries) const {
    return kernels_.workspace(step_.layout, rows, table_rows, entries);
  }
  // (entries,) of every later step: -log p of each entry's target.
  void set_entry_losses(T* entry_losses) { step_.entry_losses = entry_losses; }
  void pack(Tensors tensors, T* flat) const {
    kernels_.pack(step_.layout, mlp_pointers<T>(tensors), step_.parallel, flat);
  }
  void unpack(const T* flat, Tensors tensors) const {
    kernels_.unpack(step_.layout, flat, step_.parallel, mlp_pointers<T>(tensors));
  }
  double step(const ContextBatch<T>& batch, T* parameters, T* gradient, const Update<T>* update, T* workspace) {
    step_.batch = batch;
    step_.parameters = parameters;
    step_.gradient = gradient;
    step_.update = update;
    step_.workspace = workspace;
    const MlpTiling tiling(step_.layout, batch.rows);
    took_branch(mlp_branch(tiling, tiling.update_time(update), gradient != nullptr, update && update->is_sparse()));
    return kernels_.step(step_);
  }

 private:
  const cpu::MlpKernels<T>& kernels_;
  MlpStep<T> step_;
};

template <typename T>
class BigramModel {
 public:
  explicit BigramModel(const ModelShape& shape, double /*softcap*/) : kernels_(cpu::select<cpu::BigramKernels<T>>()) {
    step_.classes = kernels_.classes(shape.vocab_size);
  }
  int64_t size() const { return step_.classes.size * step_.classes.padded(); }
  int64_t workspace(int64_t /*rows*/, int64_t /*table_rows*/, int64_t entries) const {
    return kernels_.workspace(step_.classes, entries);
  }
  void pack(Tensors tensors, T* flat) const {
    copy(static_cast<const T*>(tensors[0].const_data_ptr()), step_.classes.size, flat, step_.classes.padded());
  }
  void unpack(const T* flat, Tensors tensors) const {
    copy(flat, step_.classes.padded(), static_cast<T*>(const_cast<void*>(tensors[0].const_data_ptr())),
         step_.classes.size);
  }
  double step(const ContextBatch<T>& batch, T* parameters, T* gradient, const Update<T>* update, T* workspace) {
    step_.batch = batch;
    step_.weight = parameters;
    step_.gradient = gradient;
    step_.update = update;
    step_.workspace = workspace;
    took_branch(bigram_branch(bigram_update_time(update)));
    return kernels_.step(step_);
  }

 private:
  void copy(const T* in, int64_t in_stride, T* out, int64_t out_stride) const {
    const int64_t size = step_.classes.size;
    for (int64_t v = 0; v < size; ++v) copy_bytes(out + v * out_stride, in + v * in_stride, size * sizeof(T));
  }

  const cpu::BigramKernels<T>& kernels_;
  BigramStep<T> step_;
};

// Steps of one model: the parameters and the state are packed once, and written back at the end.
template <typename T, typename Model>
class Training {
 public:
  Training(Model* model, Tensors parameters, Tensors state, const TrainingOptions& options)
      : parameters_(parameters),
        state_(state),
        options_(options),
        model_(*model),
        memory_(model_.size() * (2 + options.states())) {
    model_.pack(parameters_, flat(0));
    for (int64_t i = 0; i < options_.states(); ++i) model_.pack(state_of(i), flat(2 + i));
    update_.kind = options.kind;
    update_.weight_decay = option_as<T>("weight_decay", options.weight_decay);
    update_.momentum = fraction_as<T>("momentum", options.momentum);
    update_.beta1 = fraction_as<T>("beta1", options.beta1);
    update_.beta2 = fraction_as<T>("beta2", options.beta2);
    update_.eps = option_as<T>("eps", options.eps);
    update_.max_grad_norm = option_as<T>("max_grad_norm", options.max_grad_norm);
    update_.state1 = flat(2);
    update_.state2 = flat(3);
  }

  // next_batch(s) is the batch of step s, of at most the given numbers of contexts, table rows and entries.
  template <typename NextBatch>
  void run(const Tensor& learning_rates, const Tensor& losses, int64_t rows, int64_t table_rows, int64_t entries,
           const NextBatch& next_batch) {
    const Workspace<T> workspace(model_.workspace(rows, table_rows, entries));
    const double* rates = learning_rates.const_data_ptr<double>();
    T* out = losses.mutable_data_ptr<T>();
    for (int64_t s = 0; s < learning_rates.numel(); ++s) {
      set_learning_rate(s, rates[s], static_cast<double>(options_.first_step) + static_cast<double>(s + 1));
      out[s] = static_cast<T>(model_.step(next_batch(s), flat(0), flat(1), &update_, workspace.data()));
    }
    model_.unpack(flat(0), parameters_);
    for (int64_t i = 0; i < options_.states(); ++i) model_.unpack(flat(2 + i), state_of(i));
  }

 private:
  T* flat(int64_t i) const { return memory_.data() + i * model_.size(); }
  Tensors state_of(int64_t i) const { return state_.subspan(i * parameters_.size(), parameters_.size()); }
  void set_learning_rate(int64_t s, double rate, double step) {
    const double step_size = rate / (1 - std::pow(options_.beta1, step));
    if (!fits<T>(rate) || !fits<T>(step_size)) [[unlikely]] {
      option_as<T>(concatenate("learning_rates[", s, "]").c_str(), fits<T>(rate) ? step_size : rate);
    }
    update_.learning_rate = static_cast<T>(rate);
    update_.step_size = static_cast<T>(step_size);
    update_.inverse_second_moment = static_cast<T>(1 / std::sqrt(1 - std::pow(options_.beta2, step)));
  }

  const Tensors parameters_, state_;
  const TrainingOptions options_;
  Model& model_;
  const ZeroedWorkspace<T> memory_;
  Update<T> update_;
};

// Calls function(model, T{}) with a model of the kind and dtype of the parameters.
template <typename Function>
void with_model(Tensors parameters, const ModelShape& shape, double softcap, const Function& function) {
  const FlushDenormals flush;
  dispatch_compute_type(parameters[0], [&](auto type) {
    using T = decltype(type);
    if (shape.is_bigram()) {
      BigramModel<T> model(shape, softcap);
      function(model, type);
    } else {
      MlpModel<T> model(shape, softcap);
      function(model, type);
    }
  });
}

}  // namespace charlm
