#include "kernels/mlp_cross_entropy.h"

#include "bindings/cuda/torch_library.h"
#include "bindings/embedding_linear_arguments.h"
#include "bindings/mlp_cross_entropy_arguments.h"

namespace charlm {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Small models of bfloat16 and float16 are computed in float32 throughout, as on the CPU. A large output layer is worth
// products in the small type, and its hidden states in it.
constexpr int64_t kSmallOutputLayer = 1 << 20;
ScalarType product_type(const Tensor& embedding, const Tensor& weight2) {
  return weight2.numel() <= kSmallOutputLayer ? compute_type(embedding) : embedding.scalar_type();
}

// The checked arguments, and gradients of all parameters, or of none.
struct Call {
  DeviceCall device;
  MlpArguments arguments;
  ScalarType type;  // of the results
  bool has_gradient;
  Tensor ids, target;
  std::vector<Tensor> gradients;

  Call(const Tensor& ids, const Tensor& target, const Tensor& embedding, const Tensor& weight1,
       const OptionalTensor& bias1, const Tensor& weight2, const OptionalTensor& bias2, int64_t ignore_index,
       int64_t reduction, double softcap, bool has_gradient)
      : device("embedding", embedding),
        arguments(read_mlp_arguments(ids, target, embedding, weight1, bias1, weight2, bias2, ignore_index, reduction,
                                     softcap, product_type(embedding, weight2))),
        type(embedding.scalar_type()),
        has_gradient(has_gradient) {
    this->ids = with_rows(arguments.ids);
    this->target = contiguous_as(target, ScalarType::Long);
    for (const Tensor& parameter : arguments.parameters) {
      gradients.push_back(has_gradient ? allocate(parameter.sizes(), parameter.scalar_type(), device.device)
                                       : allocate({0}, parameter.scalar_type(), device.device));
    }
  }

  template <typename T>
  cuda::MlpCrossEntropy<T> problem() const {
    const auto parameter = [&](int i) { return arguments.parameters[i].const_data_ptr(); };
    cuda::MlpCrossEntropy<T> problem;
    cuda::EmbeddingLinearCall& hidden = problem.hidden;
    hidden.ids = token_ids(ids);
    hidden.vocab_size = arguments.shape.vocab_size;
    hidden.embedding_dim = arguments.shape.embedding_dim;
    hidden.hidden_dim = arguments.shape.hidden_dim;
    hidden.storage = storage_of(arguments.parameters[0]);
    hidden.embedding = parameter(0);
    hidden.weight = parameter(1);
    hidden.bias = parameter(2);
    cuda::LinearCrossEntropy<T>& output = problem.output;
    output.layer.weight = Matrix(parameter(3), hidden.storage, hidden.vocab_size, hidden.hidden_dim);
    output.layer.bias = parameter(4);
    output.loss.rows = arguments.examples;
    output.loss.classes = hidden.vocab_size;
    output.loss.target = target.const_data_ptr<int64_t>();
    output.loss.ignore_index = arguments.ignore_index;
    output.loss.softcap = option_as<T>("softcap", arguments.softcap);
    output.mean = arguments.reduction == Reduction::kMean;
    return problem;
  }

  template <typename T>
  void run(const char* in_tiles, const char* in_layers, cuda::MlpCrossEntropy<T> problem) const {
    problem.has_gradient = has_gradient;
    if (has_gradient) {
      problem.hidden.embedding_gradient = gradients[0].mutable_data_ptr();
      problem.hidden.weight_gradient = gradients[1].mutable_data_ptr();
      problem.hidden.bias_gradient = gradients[2].mutable_data_ptr();
      problem.output.layer.weight_gradient = gradients[3].mutable_data_ptr();
      problem.output.layer.bias_gradient = gradients[4].mutable_data_ptr();
    }
    took_branch(cuda::mlp_cross_entropy_in_tiles(problem) ? in_tiles : in_layers);
    TorchLibrary library(device);
    device.check(cuda::mlp_cross_entropy(problem, library, device.stream()));
  }

  Gradients results() const {
    const auto at = [&](int i) {
      return has_gradient ? mlp_gradient(arguments, i, gradients[i], type) : contiguous_as(gradients[i], type);
    };
    return {at(0), at(1), at(2), at(3), at(4)};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor ids, const Tensor target,
                                                                   const Tensor embedding, const Tensor weight1,
                                                                   const OptionalTensor bias1, const Tensor weight2,
                                                                   const OptionalTensor bias2, int64_t ignore_index,
                                                                   int64_t reduction, double softcap,
                                                                   bool compute_gradient) {
  const Call call(ids, target, embedding, weight1, bias1, weight2, bias2, ignore_index, reduction, softcap,
                  compute_gradient);
  const bool per_row = call.arguments.reduction == Reduction::kNone;
  const Tensor loss = per_row ? allocate(target.sizes(), compute_type(embedding), call.device.device)
                              : allocate({}, compute_type(embedding), call.device.device);
  dispatch_compute_type(embedding, [&](auto type) {
    using T = decltype(type);
    auto problem = call.problem<T>();
    (per_row ? problem.output.row_loss : problem.output.total_loss) = loss.template mutable_data_ptr<T>();
    call.run("mlp_cross_entropy_forward/in_tiles", "mlp_cross_entropy_forward/in_layers", problem);
  });
  return std::tuple_cat(std::make_tuple(loss), call.results());
}

Gradients backward(const Tensor grad_output, const Tensor ids, const Tensor target, const Tensor embedding,
                   const Tensor weight1, const OptionalTensor bias1, const Tensor weight2, const OptionalTensor bias2,
                   int64_t ignore_index, int64_t reduction, double softcap) {
  const Call call(ids, target, embedding, weight1, bias1, weight2, bias2, ignore_index, reduction, softcap, true);
  check_mlp_upstream(call.arguments, grad_output, embedding);
  const Tensor upstream = contiguous_as(grad_output, compute_type(embedding));
  dispatch_compute_type(embedding, [&](auto type) {
    using T = decltype(type);
    auto problem = call.problem<T>();
    const T* factors = upstream.template const_data_ptr<T>();
    (call.arguments.reduction == Reduction::kNone ? problem.output.loss.row_scale : problem.output.upstream) = factors;
    call.run("mlp_cross_entropy_backward/in_tiles", "mlp_cross_entropy_backward/in_layers", problem);
  });
  return call.results();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("mlp_cross_entropy_forward", TORCH_BOX(&forward));
  ops.impl("mlp_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
