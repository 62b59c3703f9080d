#include "kernels/mlp_cross_entropy.h"

#include "bindings/branches.h"
#include "bindings/layers.h"
#include "bindings/mlp_cross_entropy_arguments.h"
#include "bindings/tokens.h"
#include "bindings/training.h"

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

// upstream: (N,) for the reduction "none", otherwise (1,); null: all 1. example_losses (N,) and gradients may be null.
template <typename T>
double run_step(const MlpArguments& arguments, const Tensor& target, const T* upstream, T* example_losses,
                const std::vector<Tensor>* gradients) {
  const Examples examples =
      read_examples("ids", flat_ids(arguments), "target", flat(target, {arguments.examples}), std::nullopt,
                    arguments.shape.vocab_size, nullptr, arguments.examples, &arguments.ignore_index);
  const std::vector<const T*> parameters = read_pointers<T>(arguments.parameters);
  const std::vector<T*> gradient_pointers = gradients != nullptr ? write_pointers<T>(*gradients) : std::vector<T*>();
  cpu::MlpCrossEntropy<T> problem;
  problem.contexts = examples.contexts;
  problem.pairs = examples.pairs.data();
  problem.examples = arguments.examples;
  problem.parameters = parameters;
  problem.mean = arguments.reduction == Reduction::kMean;
  if (upstream != nullptr && arguments.reduction == Reduction::kNone) {
    problem.row_scale = upstream;
  } else if (upstream != nullptr) {
    problem.scale = *upstream;
  }
  problem.row_loss = example_losses;
  problem.gradients = gradient_pointers;
  cpu::MlpModel<T> model(arguments.shape, option_as<T>("softcap", arguments.softcap));
  const double loss = cpu::mlp_cross_entropy(problem, &model);
  took_branch_of(model);
  return loss;
}

// One layer after the other: the loss (N,) or (), and gradients unless that is null.
Tensor run_layers(const MlpArguments& arguments, const Tensor& target, std::vector<Tensor>* gradients) {
  constexpr auto kTanh = static_cast<int64_t>(Activation::kTanh);
  const bool wanted = gradients != nullptr;
  const std::vector<Tensor>& parameters = arguments.parameters;
  const Tensor ids = flat_ids(arguments);
  const auto [hidden, rows] = embedding_linear_forward(ids, parameters[0], parameters[1], parameters[2], kTanh, wanted);
  const auto [loss, lse, of_hidden, of_weight2, of_bias2] = linear_cross_entropy_forward(
      hidden, parameters[3], flat(target, {arguments.examples}), parameters[4], std::nullopt, std::nullopt,
      arguments.ignore_index, static_cast<int64_t>(arguments.reduction), 0, arguments.softcap, 0, wanted, wanted,
      wanted);
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
  if (cpu::mlp_cross_entropy_in_layers(arguments.shape, arguments.examples)) {
    loss = run_layers(arguments, target, compute_gradient ? &gradients : nullptr);
    if (per_example) loss = torch::stable::view(loss, target.sizes());
  } else {
    if (compute_gradient) gradients = empty_gradients(arguments);
    dispatch_compute_type(embedding, [&](auto kind) {
      using T = decltype(kind);
      const double total =
          run_step<T>(arguments, target, nullptr, per_example ? loss.template mutable_data_ptr<T>() : nullptr,
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
    run_step<T>(arguments, target, upstream.template const_data_ptr<T>(), nullptr, &gradients);
  });
  return as_tuple(arguments, gradients, embedding.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("mlp_cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("mlp_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
