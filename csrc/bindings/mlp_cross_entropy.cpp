#include "bindings/mlp_cross_entropy_arguments.h"
#include "bindings/tokens.h"

namespace charlm {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// One evaluation: each distinct context once, losses per example and, where asked for, all gradients.
template <typename T>
class Evaluation {
 public:
  Evaluation(const MlpArguments& arguments, const Tensor& target)
      : arguments_(arguments),
        model_(arguments.shape, arguments.softcap),
        data_(read_examples("ids", flat(arguments.ids, {arguments.examples, arguments.shape.context_length}), "target",
                            flat(target, {arguments.examples}), std::nullopt, arguments.shape.vocab_size, nullptr,
                            arguments.examples)),
        memory_(batch_memory(data_.contexts, arguments.examples)),
        builder_(data_.contexts, arguments.examples, memory_.data()),
        parameters_(model_.size()) {
    model_.pack(arguments.parameters, parameters_.data());
    batch_ = builder_.template build<T>(data_.pairs.data(), arguments.examples);
    if (arguments.reduction == Reduction::kSum) batch_.weight = 1;
  }

  // weights (N,) of the examples; null: those of the reduction. example_losses (N,) and gradients may be null.
  double run(const T* weights, T* example_losses, std::vector<Tensor>* gradients) {
    const int64_t count = arguments_.examples;
    const int32_t* entry = builder_.entry_of_example();
    const Workspace<T> entries(2 * count);
    T *entry_losses = entries.data(), *entry_weights = entry_losses + count;
    if (weights != nullptr) {
      for (int64_t n = 0; n < count; ++n) entry_weights[entry[n]] = weights[n];
      batch_.weights = entry_weights;
    }
    const Workspace<T> workspace(
        model_.workspace(batch_.rows, batch_.table_rows(arguments_.shape.context_length), count));
    const ZeroedWorkspace<T> gradient(gradients != nullptr ? model_.size() : 0);
    model_.set_entry_losses(entry_losses);
    const double loss = model_.step(batch_, parameters_.data(), gradients != nullptr ? gradient.data() : nullptr,
                                    nullptr, workspace.data());
    if (example_losses != nullptr) {
      for (int64_t n = 0; n < count; ++n) example_losses[n] = entry_losses[entry[n]];
    }
    if (gradients != nullptr) model_.unpack(gradient.data(), *gradients);
    return loss;
  }

 private:
  static Tensor flat(const Tensor& tensor, std::initializer_list<int64_t> shape) {
    if (tensor.dim() == static_cast<int64_t>(shape.size())) return tensor;
    return torch::stable::view(as_contiguous(tensor), shape);
  }

  const MlpArguments& arguments_;
  MlpModel<T> model_;
  Examples data_;
  Workspace<int32_t> memory_;
  BatchBuilder builder_;
  ZeroedWorkspace<T> parameters_;
  MlpBatch<T> batch_;
};

std::vector<Tensor> empty_gradients(const MlpArguments& arguments) {
  std::vector<Tensor> gradients;
  for (const Tensor& parameter : arguments.parameters) {
    gradients.push_back(allocate(parameter.sizes(), parameter.scalar_type()));
  }
  return gradients;
}
Gradients as_tuple(const MlpArguments& arguments, const std::vector<Tensor>& gradients, ScalarType type) {
  const auto at = [&](int i) { return mlp_gradient(arguments, i, gradients[i], type); };
  return {at(0), at(1), at(2), at(3), at(4)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor ids, const Tensor target,
                                                                   const Tensor embedding, const Tensor weight1,
                                                                   const OptionalTensor bias1, const Tensor weight2,
                                                                   const OptionalTensor bias2, int64_t reduction,
                                                                   double softcap, bool compute_gradient) {
  const MlpArguments arguments = read_mlp_arguments(ids, target, embedding, weight1, bias1, weight2, bias2, reduction,
                                                    softcap, compute_type(embedding));
  const ScalarType compute = compute_type(embedding), type = embedding.scalar_type();
  const bool per_example = arguments.reduction == Reduction::kNone;
  Tensor loss = per_example ? allocate(target.sizes(), compute) : allocate({}, compute);
  std::vector<Tensor> gradients;
  if (compute_gradient) {
    gradients = empty_gradients(arguments);
  } else {
    for (int i = 0; i < kMlpParameters; ++i) gradients.push_back(allocate({0}, type));
  }
  dispatch_compute_type(embedding, [&](auto kind) {
    using T = decltype(kind);
    Evaluation<T> evaluation(arguments, target);
    const double total = evaluation.run(nullptr, per_example ? loss.template mutable_data_ptr<T>() : nullptr,
                                        compute_gradient ? &gradients : nullptr);
    if (per_example) return;
    const bool is_empty_mean = arguments.examples == 0 && arguments.reduction == Reduction::kMean;
    *loss.template mutable_data_ptr<T>() = is_empty_mean ? static_cast<T>(NAN) : static_cast<T>(total);
  });
  if (compute_gradient) return std::tuple_cat(std::make_tuple(loss), as_tuple(arguments, gradients, type));
  return {loss, gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]};
}

Gradients backward(const Tensor grad_output, const Tensor ids, const Tensor target, const Tensor embedding,
                   const Tensor weight1, const OptionalTensor bias1, const Tensor weight2, const OptionalTensor bias2,
                   double softcap) {
  const MlpArguments arguments =
      read_mlp_arguments(ids, target, embedding, weight1, bias1, weight2, bias2, static_cast<int64_t>(Reduction::kNone),
                         softcap, compute_type(embedding));
  check_on_cpu("grad_output", grad_output);
  check_elements("grad_output", grad_output, arguments.examples);
  const Tensor weights = contiguous_as(grad_output, compute_type(embedding));
  std::vector<Tensor> gradients = empty_gradients(arguments);
  dispatch_compute_type(embedding, [&](auto kind) {
    using T = decltype(kind);
    Evaluation<T>(arguments, target).run(weights.template const_data_ptr<T>(), nullptr, &gradients);
  });
  return as_tuple(arguments, gradients, embedding.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, library) {
  library.impl("mlp_cross_entropy_forward", TORCH_BOX(&forward));
  library.impl("mlp_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
