// Many training steps of one model or several in one launch, in place on torch's tensors.
#include "kernels/train_steps.h"

#include <torch/csrc/stable/accelerator.h>

#include "bindings/cuda/torch_library.h"
#include "bindings/embedding_linear_arguments.h"
#include "bindings/gpu_support.h"
#include "bindings/training_ops.h"

namespace charlm {
namespace {

// Bytes of the CPU, in memory of the device.
Tensor copied(const void* data, int64_t bytes, const Device& device) {
  Tensor copy = allocate({bytes}, ScalarType::Byte, device);
  torch::stable::copy_(copy, tensor_at(data, ScalarType::Byte, {bytes}, {1}, kCpu));
  return copy;
}
template <typename V>
Tensor copied(const std::vector<V>& values, const Device& device) {
  return copied(values.data(), static_cast<int64_t>(values.size() * sizeof(V)), device);
}

// The checked models, and what launchers read of them in the memory of the device.
class Call {
 public:
  explicit Call(const Population& population)
      : device_("the parameters", population.parameters[0]), population_(population) {}

  const Device& device() const { return device_.device; }

  // On the device of the parameters.
  void check_integers(const char* name, const Tensor& tensor) const {
    check_same_device(name, tensor, "the parameters", population_.parameters[0]);
    check_integral(name, tensor);
  }

  // run(training, library, stream) returns the launcher's error.
  template <typename T, typename Run>
  Tensor train(const Run& run) const {
    const ModelShape& shape = population_.shape;
    const int blocks = cuda::blocks_of_model<T>(shape, population_.models());
    check(blocks > 0, "the parameters must fit into the shared memory of ", DeviceString(population_.parameters[0]),
          ", but V=", shape.vocab_size, ", T=", shape.context_length, ", D=", shape.embedding_dim,
          ", H=", shape.hidden_dim, " do not: backend 'ops' takes them");
    const int64_t models = population_.models(), steps = population_.steps();
    const Tensor losses = allocate(population_.learning_rates.sizes(), kDtype<T>, device());
    if (steps == 0) return losses;
    std::vector<T*> tensors;
    std::vector<cuda::ModelOptions<T>> options;
    std::vector<Rates<T>> rates;
    for (int64_t i = 0; i < models; ++i) {
      about_model(population_, i, [&] {
        const TrainingOptions& own = population_.options[i];
        options.push_back({update_as<T>(own), option_as<T>("softcap", own.softcap)});
        const std::vector<Rates<T>> own_rates = rates_as<T>(own, population_.learning_rates, i);
        rates.insert(rates.end(), own_rates.begin(), own_rates.end());
      });
      for (const Tensors part : {population_.parameters_of(i), population_.state_of(i)}) {
        const std::vector<T*> pointers = write_pointers<T>(part);
        tensors.insert(tensors.end(), pointers.begin(), pointers.end());
      }
    }
    check_disjoint(population_);

    const Tensor all_tensors = copied(tensors, device()), all_options = copied(options, device());
    const Tensor all_rates = copied(rates, device());
    cuda::Training<T> training;
    training.shape = shape;
    training.states = population_.options[0].states();
    training.models = models;
    training.steps = steps;
    training.tensors = static_cast<T* const*>(all_tensors.const_data_ptr());
    training.options = static_cast<const cuda::ModelOptions<T>*>(all_options.const_data_ptr());
    training.rates = static_cast<const Rates<T>*>(all_rates.const_data_ptr());
    training.losses = losses.mutable_data_ptr<T>();
    TorchLibrary library(device_);
    DeviceCall::check(run(training, library, device_.stream()));
    took_branch(blocks > 1 ? "train_steps/in_cluster" : "train_steps/in_block");
    return losses;
  }

 private:
  DeviceCall device_;
  const Population& population_;
};

// Of each model, the steps on its own batches: batch_indices (M, S, B), or (S, B) of one alone.
Tensor train_on_batches(const Population& population, const Tensor& contexts, const Tensor& targets,
                        const OptionalTensor& context_index, const Tensor& batch_indices) {
  const Call call(population);
  call.check_integers("contexts", contexts);
  call.check_integers("targets", targets);
  check_integral("batch_indices", batch_indices);
  if (context_index.has_value()) {
    call.check_integers("context_index", *context_index);
    check(context_index->dim() == 1, "context_index must have shape (N,), got ", ShapeString(*context_index));
  }
  cuda::Batches batches;
  batches.examples = context_index.has_value() ? context_index->numel() : contexts.size(0);
  check_shape("targets", targets, {{"N", batches.examples}});
  // From wherever they are.
  Tensor indices = allocate(batch_indices.sizes(), ScalarType::Long, call.device());
  torch::stable::copy_(indices, batch_indices);
  const Tensor classes = contiguous_as(targets, ScalarType::Long);
  const OptionalTensor index = contiguous_as(context_index, ScalarType::Long);
  const Tensor rows = with_rows(contexts);
  batches.contexts = token_ids(rows);
  batches.targets = classes.const_data_ptr<int64_t>();
  batches.context_index = index.has_value() ? index->const_data_ptr<int64_t>() : nullptr;
  batches.batch_indices = indices.const_data_ptr<int64_t>();
  batches.size = batch_indices.size(batch_indices.dim() - 1);
  return dispatch_compute_type(population.parameters[0], [&](auto type) {
    using T = decltype(type);
    return call.train<T>([&](const cuda::Training<T>& training, TorchLibrary& library, cuda::Stream stream) {
      return cuda::train_batches(training, batches, library, stream);
    });
  });
}

Tensor train_on_all(const Population& population, const Tensor& contexts, const Tensor& row_ptr, const Tensor& targets,
                    const Tensor& counts) {
  const Call call(population);
  call.check_integers("contexts", contexts);
  call.check_integers("row_ptr", row_ptr);
  call.check_integers("targets", targets);
  call.check_integers("counts", counts);
  cuda::FullBatch batch;
  batch.entries = targets.numel();
  constexpr int64_t kLimit = int64_t{1} << 31;  // rows and entries are numbered in 32 bits
  check(contexts.size(0) > 0 && contexts.size(0) < kLimit,
        "contexts must have at least one row, and fewer than 2^31, got ", ShapeString(contexts));
  check(targets.dim() == 1 && batch.entries < kLimit, "targets must have shape (entries,), fewer than 2^31, got ",
        ShapeString(targets));
  check(counts.sizes().equals(targets.sizes()), "counts must have the shape of targets ", ShapeString(targets),
        ", got ", ShapeString(counts));
  check(batch.entries > 0, "counts must have a positive sum, got 0");
  check_shape("row_ptr", row_ptr, {{"U+1", contexts.size(0) + 1}});
  const Tensor begins = contiguous_as(row_ptr, ScalarType::Long), classes = contiguous_as(targets, ScalarType::Long);
  const Tensor numbers = contiguous_as(counts, ScalarType::Double), rows = with_rows(contexts);
  batch.contexts = token_ids(rows);
  batch.row_ptr = begins.const_data_ptr<int64_t>();
  batch.targets = classes.const_data_ptr<int64_t>();
  batch.counts = numbers.const_data_ptr<double>();
  return dispatch_compute_type(population.parameters[0], [&](auto type) {
    using T = decltype(type);
    return call.train<T>([&](const cuda::Training<T>& training, TorchLibrary& library, cuda::Stream stream) {
      return cuda::train_full_batch(training, batch, library, stream);
    });
  });
}

}  // namespace

bool trains_in_one_launch(int device, const ModelShape& shape, bool is_float64) {
  if (why_no_kernels(device).has_value()) return false;
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (cuda::use_device(device) != 0) return false;
  return (is_float64 ? cuda::blocks_of_model<double>(shape, 1) : cuda::blocks_of_model<float>(shape, 1)) > 0;
}

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  BatchOps<train_on_batches>::add_to(ops);
  FullBatchOps<train_on_all>::add_to(ops);
}

}  // namespace charlm
