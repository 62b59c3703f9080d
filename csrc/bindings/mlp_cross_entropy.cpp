#include "bindings/layers.h"
#include "bindings/mlp_cross_entropy_arguments.h"
#include "bindings/tokens.h"
#include "kernels/embedding_linear.h"

namespace charlm {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// `tensor` with all dimensions of examples in one.
Tensor flat(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  if (tensor.dim() == static_cast<int64_t>(shape.size())) return tensor;
  return torch::stable::view(as_contiguous(tensor), shape);
}
Tensor flat_ids(const MlpArguments& arguments) {
  return flat(arguments.ids, {arguments.examples, arguments.shape.context_length});
}

// One evaluation: each distinct context once, losses per example and, where asked for, all gradients. Examples whose
// target is ignored are left out.
template <typename T>
class Evaluation {
 public:
  Evaluation(const MlpArguments& arguments, const Tensor& target)
      : arguments_(arguments),
        model_(arguments.shape, arguments.softcap),
        data_(read_examples("ids", flat_ids(arguments), "target", flat(target, {arguments.examples}), std::nullopt,
                            arguments.shape.vocab_size, nullptr, arguments.examples, &arguments.ignore_index)),
        example_(arguments.examples),
        memory_(batch_memory(data_.contexts, arguments.examples)),
        builder_(data_.contexts, arguments.examples, memory_.data()),
        parameters_(model_.size()) {
    model_.pack(arguments.parameters, parameters_.data());
    Example* pairs = data_.pairs.data();
    for (int64_t n = 0; n < arguments.examples; ++n) {
      if (pairs[n].target == kIgnored) continue;
      pairs[count_] = pairs[n];
      example_.data()[count_++] = n;
    }
    batch_ = builder_.template build<T>(pairs, count_);
    if (arguments.reduction != Reduction::kMean) batch_.weight = 1;
  }

  // upstream: (N,) for the reduction "none", otherwise (1,); null: all 1. example_losses (N,) and gradients may be
  // null.
  double run(const T* upstream, T* example_losses, std::vector<Tensor>* gradients) {
    const int32_t* entry = builder_.entry_of_example();
    const Workspace<T> entries(2 * count_);
    T *entry_losses = entries.data(), *entry_weights = entry_losses + count_;
    if (upstream != nullptr && arguments_.reduction == Reduction::kNone) {
      for (int64_t i = 0; i < count_; ++i) entry_weights[entry[i]] = upstream[example_.data()[i]];
      batch_.weights = entry_weights;
    } else if (upstream != nullptr) {
      batch_.weight *= *upstream;
    }
    const Workspace<T> workspace(
        model_.workspace(batch_.rows, batch_.table_rows(arguments_.shape.context_length), count_));
    const ZeroedWorkspace<T> gradient(gradients != nullptr ? model_.size() : 0);
    model_.set_entry_losses(entry_losses);
    const double loss = model_.step(batch_, parameters_.data(), gradients != nullptr ? gradient.data() : nullptr,
                                    nullptr, workspace.data());
    if (example_losses != nullptr) {
      fill_zero(example_losses, arguments_.examples * sizeof(T));
      for (int64_t i = 0; i < count_; ++i) example_losses[example_.data()[i]] = entry_losses[entry[i]];
    }
    if (gradients != nullptr) model_.unpack(gradient.data(), *gradients);
    const bool is_empty_mean = count_ == 0 && arguments_.reduction == Reduction::kMean;
    return is_empty_mean ? static_cast<double>(NAN) : loss;
  }

 private:
  const MlpArguments& arguments_;
  MlpModel<T> model_;
  Examples data_;
  Workspace<int64_t> example_;  // that each of the first `count_` pairs is
  int64_t count_ = 0;
  Workspace<int32_t> memory_;
  BatchBuilder builder_;
  Workspace<T> parameters_;
  ContextBatch<T> batch_;
};

// Where the parameters are many, and few the rows, copying the parameters takes longer than what it saves. By shape
// alone, so that a result does not depend on anything else.
bool runs_in_layers(const MlpArguments& arguments) {
  constexpr int64_t kManyParameters = 1 << 18, kParametersOfRow = 1 << 10;
  const ModelShape& shape = arguments.shape;
  const int64_t parameters = shape.hidden_dim * (shape.vocab_size + shape.context_length * shape.embedding_dim);
  return parameters > kManyParameters && arguments.examples < parameters / kParametersOfRow;
}

// One layer after the other: the loss (N,) or (), and gradients unless that is null.
Tensor run_layers(const MlpArguments& arguments, const Tensor& target, std::vector<Tensor>* gradients) {
  constexpr auto kTanh = static_cast<int64_t>(Activation::kTanh);
  const bool wanted = gradients != nullptr;
  const std::vector<Tensor>& parameters = arguments.parameters;
  const Tensor ids = flat_ids(arguments);
  const auto [hidden, rows] = embedding_linear_forward(ids, parameters[0], parameters[1], parameters[2], kTanh, wanted);
  const auto [loss, lse, of_hidden, of_weight2, of_bias2] = linear_cross_entropy_forward(
      hidden, parameters[3], flat(target, {arguments.examples}), parameters[4], std::nullopt, arguments.ignore_index,
      static_cast<int64_t>(arguments.reduction), 0, arguments.softcap, 0, wanted, wanted, wanted);
  if (wanted) {
    const auto [of_embedding, of_weight1, of_bias1] =
        embedding_linear_backward(of_hidden, hidden, ids, rows, parameters[1], parameters[2], kTanh,
                                  arguments.shape.vocab_size, wanted, wanted, wanted);
    *gradients = {of_embedding, of_weight1, of_bias1, of_weight2, of_bias2};
  }
  took_branch("mlp_cross_entropy_forward/in_layers");
  return loss;
}

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
                                                                   const OptionalTensor bias2, int64_t ignore_index,
                                                                   int64_t reduction, double softcap,
                                                                   bool compute_gradient) {
  const MlpArguments arguments = read_mlp_arguments(ids, target, embedding, weight1, bias1, weight2, bias2,
                                                    ignore_index, reduction, softcap, compute_type(embedding));
  const ScalarType compute = compute_type(embedding), type = embedding.scalar_type();
  const bool per_example = arguments.reduction == Reduction::kNone;
  Tensor loss = per_example ? allocate(target.sizes(), compute) : allocate({}, compute);
  std::vector<Tensor> gradients;
  if (runs_in_layers(arguments)) {
    loss = run_layers(arguments, target, compute_gradient ? &gradients : nullptr);
    if (per_example) loss = torch::stable::view(loss, target.sizes());
  } else {
    if (compute_gradient) gradients = empty_gradients(arguments);
    dispatch_compute_type(embedding, [&](auto kind) {
      using T = decltype(kind);
      Evaluation<T> evaluation(arguments, target);
      const double total = evaluation.run(nullptr, per_example ? loss.template mutable_data_ptr<T>() : nullptr,
                                          compute_gradient ? &gradients : nullptr);
      if (!per_example) *loss.template mutable_data_ptr<T>() = static_cast<T>(total);
    });
  }
  if (compute_gradient) return std::tuple_cat(std::make_tuple(loss), as_tuple(arguments, gradients, type));
  const auto nothing = [&] { return allocate({0}, type); };
  return {loss, nothing(), nothing(), nothing(), nothing(), nothing()};
}

Gradients backward(const Tensor grad_output, const Tensor ids, const Tensor target, const Tensor embedding,
                   const Tensor weight1, const OptionalTensor bias1, const Tensor weight2, const OptionalTensor bias2,
                   int64_t ignore_index, int64_t reduction, double softcap) {
  const MlpArguments arguments = read_mlp_arguments(ids, target, embedding, weight1, bias1, weight2, bias2,
                                                    ignore_index, reduction, softcap, compute_type(embedding));
  check_mlp_upstream(arguments, grad_output, embedding);
  const Tensor upstream = contiguous_as(grad_output, compute_type(embedding));
  std::vector<Tensor> gradients = empty_gradients(arguments);
  dispatch_compute_type(embedding, [&](auto kind) {
    using T = decltype(kind);
    Evaluation<T>(arguments, target).run(upstream.template const_data_ptr<T>(), nullptr, &gradients);
  });
  return as_tuple(arguments, gradients, embedding.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("mlp_cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("mlp_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
