// Many training steps in one call, in place on torch's tensors.
#include <cmath>
#include <cstring>

#include "bindings/check.h"
#include "kernels/batch.h"
#include "kernels/mlp.h"

namespace charlm {
namespace {

struct Options {
  OptimizerKind kind;
  double momentum, beta1, beta2, eps, weight_decay, max_grad_norm, softcap;
  int64_t first_step;

  int64_t states() const { return kind == OptimizerKind::kAdamw ? 2 : momentum != 0 ? 1 : 0; }
};

void check_options(const Options& options) {
  check(options.kind == OptimizerKind::kSgd || options.kind == OptimizerKind::kAdamw,
        "optimizer must be 0 (sgd) or 1 (adamw), got ", static_cast<int64_t>(options.kind));
  check(options.momentum >= 0 && options.momentum < 1, "momentum must be in [0, 1), got ", options.momentum);
  check(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1,
        "betas must be in [0, 1), got (", options.beta1, ", ", options.beta2, ")");
  check(options.eps >= 0 && std::isfinite(options.eps), "eps must be non-negative and finite, got ", options.eps);
  check(options.weight_decay >= 0 && std::isfinite(options.weight_decay),
        "weight_decay must be non-negative and finite, got ", options.weight_decay);
  check(options.max_grad_norm >= 0, "max_grad_norm must be positive, or 0 for none, got ", options.max_grad_norm);
  check(options.softcap >= 0 && std::isfinite(options.softcap), "softcap must be positive and finite, or 0, got ",
        options.softcap);
  check(options.first_step >= 0, "first_step must be at least 0, got ", options.first_step);
}

constexpr const char* kNames[] = {"embedding", "weight1", "bias1", "weight2", "bias2", "direct_weight"};

void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape, const char* meaning) {
  bool matches = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; matches && d < shape.size(); ++d) matches = tensor.size(d) == shape.begin()[d];
  check(matches, name, " must have shape ", meaning, " = ",
        shape_string(torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size())), ", got ",
        shape_string(tensor));
}

// In-place updates need memory that is exactly the tensor.
void check_parameter(const char* name, const Tensor& tensor, const Tensor& first) {
  check_matches(name, tensor, "embedding", first);
  check(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double, name,
        " must have dtype float32 or float64, got ", dtype_string(tensor.scalar_type()));
  check(tensor.is_contiguous(), name, " must be contiguous, since it is updated in place");
}

struct Shape {
  int64_t vocab_size, embedding_dim, hidden_dim;
};

Shape check_parameters(const std::vector<Tensor>& parameters, int64_t context_length) {
  check(parameters.size() == 5 || parameters.size() == 6,
        "parameters must be embedding, weight1, bias1, weight2, bias2 and perhaps direct_weight, got ",
        parameters.size(), " tensors");
  for (size_t i = 0; i < parameters.size(); ++i) check_parameter(kNames[i], parameters[i], parameters[0]);
  check(parameters[0].dim() == 2 && parameters[0].numel() > 0, "embedding must have shape (V, D), got ",
        shape_string(parameters[0]));
  check(parameters[2].dim() == 1 && parameters[2].numel() > 0, "bias1 must have shape (H,), got ",
        shape_string(parameters[2]));
  const Shape shape{parameters[0].size(0), parameters[0].size(1), parameters[2].size(0)};
  const int64_t inputs = context_length * shape.embedding_dim;
  check_shape("weight1", parameters[1], {shape.hidden_dim, inputs}, "(H, T*D)");
  check_shape("weight2", parameters[3], {shape.vocab_size, shape.hidden_dim}, "(V, H)");
  check_shape("bias2", parameters[4], {shape.vocab_size}, "(V,)");
  if (parameters.size() == 6) check_shape("direct_weight", parameters[5], {shape.vocab_size, inputs}, "(V, T*D)");
  return shape;
}

void check_state(const std::vector<Tensor>& state, const std::vector<Tensor>& parameters, int64_t states) {
  check(state.size() == states * parameters.size(), "optimizer_state must have ", states,
        " tensors for each parameter, got ", state.size(), " for ", parameters.size());
  for (size_t i = 0; i < state.size(); ++i) {
    const Tensor& parameter = parameters[i % parameters.size()];
    const std::string name = concatenate("optimizer_state[", i, "]");
    check_parameter(name.c_str(), state[i], parameters[0]);
    bool matches = state[i].dim() == parameter.dim();
    for (int64_t d = 0; matches && d < parameter.dim(); ++d) matches = state[i].size(d) == parameter.size(d);
    check(matches, name, " must have the shape of ", kNames[i % parameters.size()], " ", shape_string(parameter),
          ", got ", shape_string(state[i]));
  }
}

template <typename Value>
void check_range(const char* name, const Value* values, int64_t count, int64_t columns, int64_t limit,
                 const char* what) {
  int64_t bad = 0;  // counted without a branch, so that the loop vectorises
  for (int64_t i = 0; i < count; ++i) bad += values[i] < 0 || values[i] >= limit;
  if (bad == 0) return;
  int64_t i = 0;
  while (values[i] >= 0 && values[i] < limit) ++i;
  const std::string position =
      columns > 0 ? concatenate('[', i / columns, ", ", i % columns, ']') : concatenate('[', i, ']');
  throw std::out_of_range(concatenate(name, position, " = ", values[i], " is out of range for ", limit, " ", what));
}

// `tensor` as int32, its values checked before the conversion could wrap them.
Tensor checked_int32(const char* name, const Tensor& tensor, int64_t columns, int64_t limit, const char* what) {
  check_integral(name, tensor);
  check_on_cpu(name, tensor);
  if (tensor.scalar_type() == ScalarType::Int) {
    const Tensor same = contiguous_as(tensor, ScalarType::Int);
    check_range(name, same.const_data_ptr<int32_t>(), same.numel(), columns, limit, what);
    return same;
  }
  const Tensor wide = contiguous_as(tensor, ScalarType::Long);
  check_range(name, wide.const_data_ptr<int64_t>(), wide.numel(), columns, limit, what);
  return contiguous_as(wide, ScalarType::Int);
}

// Memory for T values, aligned to cache lines and zero.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : tensor_(allocate({count + kLine}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float)) {
    T* begin = tensor_.template mutable_data_ptr<T>();
    std::memset(begin, 0, (count + kLine) * sizeof(T));
    data_ = begin + (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64 / sizeof(T);
  }
  T* data() const { return data_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  Tensor tensor_;
  T* data_;
};

template <typename T>
MlpTensors<T> pointers(const std::vector<Tensor>& tensors, size_t first) {
  const auto at = [&](size_t i) { return static_cast<T*>(tensors[first + i].mutable_data_ptr()); };
  return {at(0), at(1), at(2), at(3), at(4), first + 5 < tensors.size() && tensors.size() % 6 == 0 ? at(5) : nullptr};
}

void run_parallel(int64_t count, Parallel::Body body, const void* context) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

// The packed model, its optimizer, and the loop.
template <typename T>
class MlpRun {
 public:
  MlpRun(const std::vector<Tensor>& parameters, const std::vector<Tensor>& state, const Shape& shape,
         int64_t context_length, const Options& options)
      : kernels_(cpu::select<cpu::MlpKernels<T>>()),
        layout_(kernels_.layout(shape.vocab_size, context_length, shape.embedding_dim, shape.hidden_dim,
                                parameters.size() == 6)),
        tensors_(pointers<T>(parameters, 0)),
        options_(options),
        memory_(layout_.size() * (2 + options.states())) {
    step_.layout = layout_;
    step_.softcap = static_cast<T>(options.softcap);
    step_.parameters = memory_.data();
    step_.gradient = memory_.data() + layout_.size();
    step_.update = &update_;
    pack(layout_, tensors_, step_.parameters);
    T** const packed_state[] = {&update_.state1, &update_.state2};
    for (int64_t i = 0; i < options.states(); ++i) {
      state_.push_back(pointers<T>(state, i * parameters.size()));
      *packed_state[i] = memory_.data() + (2 + i) * layout_.size();
      pack(layout_, state_[i], *packed_state[i]);
    }
    update_.kind = options.kind;
    update_.weight_decay = static_cast<T>(options.weight_decay);
    update_.momentum = static_cast<T>(options.momentum);
    update_.beta1 = static_cast<T>(options.beta1);
    update_.beta2 = static_cast<T>(options.beta2);
    update_.eps = static_cast<T>(options.eps);
    update_.max_grad_norm = static_cast<T>(options.max_grad_norm);
  }

  // next_batch(s) builds the batch of step s, of at most the given numbers of contexts, table rows and entries.
  template <typename NextBatch>
  void run(const Tensor& learning_rates, const Tensor& losses, int64_t rows, int64_t table_rows, int64_t entries,
           const NextBatch& next_batch) {
    const Buffer<T> workspace(kernels_.workspace(layout_, rows, table_rows, entries));
    step_.workspace = workspace.data();
    step_.parallel.run = run_parallel;
    const double* rates = learning_rates.const_data_ptr<double>();
    T* out = losses.mutable_data_ptr<T>();
    for (int64_t s = 0; s < learning_rates.numel(); ++s) {
      set_learning_rate(rates[s], static_cast<double>(options_.first_step + s + 1));
      step_.batch = next_batch(s);
      out[s] = static_cast<T>(kernels_.step(step_));
    }
    unpack(layout_, step_.parameters, tensors_);
    if (!state_.empty()) unpack(layout_, update_.state1, state_[0]);
    if (state_.size() > 1) unpack(layout_, update_.state2, state_[1]);
  }

 private:
  void set_learning_rate(double rate, double step) {
    update_.learning_rate = static_cast<T>(rate);
    update_.step_size = static_cast<T>(rate / (1 - std::pow(options_.beta1, step)));
    update_.inverse_second_moment = static_cast<T>(1 / std::sqrt(1 - std::pow(options_.beta2, step)));
  }

  const cpu::MlpKernels<T>& kernels_;
  const MlpLayout layout_;
  const MlpTensors<T> tensors_;
  const Options options_;
  const Buffer<T> memory_;
  std::vector<MlpTensors<T>> state_;
  Update<T> update_;
  MlpStep<T> step_;
};

int64_t table_row_limit(const Examples& examples, int64_t rows) {
  const int64_t limit = rows < examples.vocab_size ? rows : examples.vocab_size;
  return limit * examples.context_length;
}

Tensor check_learning_rates(const Tensor& learning_rates) {
  check(learning_rates.dim() == 1, "learning_rates must have shape (S,), got ", shape_string(learning_rates));
  check_floating("learning_rates", learning_rates);
  check_on_cpu("learning_rates", learning_rates);
  return contiguous_as(learning_rates, ScalarType::Double);
}

int64_t check_contexts(const Tensor& contexts) {
  check(contexts.dim() == 2 && contexts.size(1) > 0, "contexts must have shape (N, T), got ", shape_string(contexts));
  check(contexts.size(0) < (int64_t{1} << 31), "contexts must have fewer than 2^31 rows, got ", shape_string(contexts));
  return contexts.size(1);
}

Tensor train_steps(std::vector<Tensor> parameters, std::vector<Tensor> state, const Tensor contexts,
                   const Tensor targets, const OptionalTensor context_index, const Tensor batch_indices,
                   const Tensor learning_rates, int64_t optimizer, double momentum, double beta1, double beta2,
                   double eps, double weight_decay, double max_grad_norm, double softcap, int64_t first_step) {
  const Options options{static_cast<OptimizerKind>(optimizer),
                        momentum,
                        beta1,
                        beta2,
                        eps,
                        weight_decay,
                        max_grad_norm,
                        softcap,
                        first_step};
  check_options(options);
  const int64_t context_length = check_contexts(contexts);
  const Shape shape = check_parameters(parameters, context_length);
  check_state(state, parameters, options.states());
  const int64_t num_examples = context_index.has_value() ? context_index->numel() : contexts.size(0);
  check(targets.dim() == 1 && targets.size(0) == num_examples, "targets must have shape (N=", num_examples, ",), got ",
        shape_string(targets));
  check(batch_indices.dim() == 2 && batch_indices.size(1) > 0, "batch_indices must have shape (S, B), got ",
        shape_string(batch_indices));
  check(learning_rates.dim() == 1 && learning_rates.size(0) == batch_indices.size(0),
        "learning_rates must have shape (S=", batch_indices.size(0), ",), got ", shape_string(learning_rates));
  const Tensor rates = check_learning_rates(learning_rates);
  check_integral("batch_indices", batch_indices);
  check_on_cpu("batch_indices", batch_indices);
  const Tensor indices = contiguous_as(batch_indices, ScalarType::Long);
  check_range("batch_indices", indices.const_data_ptr<int64_t>(), indices.numel(), indices.size(1), num_examples,
              "examples");
  const Tensor tokens = checked_int32("contexts", contexts, context_length, shape.vocab_size, "tokens");
  const Tensor classes = checked_int32("targets", targets, 0, shape.vocab_size, "classes");

  Examples examples{context_length, shape.vocab_size, contexts.size(0), tokens.const_data_ptr<int32_t>(), nullptr};
  Tensor index, distinct;
  if (context_index.has_value()) {
    check(context_index->dim() == 1, "context_index must have shape (N,), got ", shape_string(*context_index));
    index = checked_int32("context_index", *context_index, 0, contexts.size(0), "contexts");
  } else {
    index = allocate({num_examples}, ScalarType::Int);
    distinct = allocate({num_examples, context_length}, ScalarType::Int);
    const std::unique_ptr<int32_t[]> table(new int32_t[number_contexts_table_size(num_examples)]);
    examples.num_contexts = number_contexts(examples.contexts, num_examples, context_length, table.get(),
                                            index.mutable_data_ptr<int32_t>(), distinct.mutable_data_ptr<int32_t>());
    examples.contexts = distinct.const_data_ptr<int32_t>();
  }
  const std::unique_ptr<Example[]> pairs(new Example[num_examples]);
  for (int64_t n = 0; n < num_examples; ++n) {
    pairs[n] = {index.const_data_ptr<int32_t>()[n], classes.const_data_ptr<int32_t>()[n]};
  }
  examples.examples = pairs.get();

  const int64_t steps = indices.size(0), size = indices.size(1);
  const int64_t rows = size < examples.num_contexts ? size : examples.num_contexts;
  const std::unique_ptr<int32_t[]> memory(new int32_t[batch_memory(examples, size)]);
  BatchBuilder builder(examples, size, memory.get());
  const Tensor losses = allocate({steps}, parameters[0].scalar_type());
  dispatch_compute_type(parameters[0], [&](auto type) {
    using T = decltype(type);
    MlpRun<T> run(parameters, state, shape, context_length, options);
    run.run(rates, losses, rows, table_row_limit(examples, rows), size, [&](int64_t s) {
      const int64_t* row = indices.const_data_ptr<int64_t>() + s * size;
      const MlpBatch<T> batch = builder.build<T>(row, size);
      if (s + 1 < steps) builder.prefetch(row + size, size);
      return batch;
    });
  });
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, library) { library.impl("train_steps", TORCH_BOX(&train_steps)); }

}  // namespace charlm
