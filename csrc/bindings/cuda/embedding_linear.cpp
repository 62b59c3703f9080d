#include "bindings/cuda/torch_library.h"
#include "bindings/embedding_linear_arguments.h"

namespace charlm {
namespace {

// The checked arguments, contiguous, and the call that points into them.
struct Arguments {
  Tensor ids, embedding, weight;
  OptionalTensor bias;
  cuda::EmbeddingLinearCall call;

  Arguments(const Tensor& ids, const Tensor& embedding, const Tensor& weight, const OptionalTensor& bias,
            int64_t activation)
      : ids(ids.size(ids.dim() - 1) > 0 ? with_rows(ids) : one_token_each(ids)),
        embedding(as_contiguous(embedding)),
        weight(as_contiguous(weight)),
        bias(bias.has_value() ? OptionalTensor(as_contiguous(*bias)) : std::nullopt) {
    call.ids = token_ids(this->ids);
    // Contexts of no tokens are computed as contexts of one token, which has no dimensions.
    const bool has_tokens = ids.size(ids.dim() - 1) > 0;
    call.vocab_size = has_tokens ? embedding.size(0) : 1;
    call.embedding_dim = has_tokens ? embedding.size(1) : 0;
    call.hidden_dim = weight.size(0);
    call.activation = static_cast<Activation>(activation);
    call.storage = storage_of(embedding);
    call.embedding = this->embedding.const_data_ptr();
    call.weight = this->weight.const_data_ptr();
    call.bias = this->bias.has_value() ? this->bias->const_data_ptr() : nullptr;
  }

 private:
  static Tensor one_token_each(const Tensor& ids) {
    const int64_t rows = context_rows(ids);
    const int64_t sizes[] = {rows, 1};
    return zeros({sizes, 2}, ScalarType::Int, ids.device());
  }
};

Tensor forward(const Tensor ids, const Tensor embedding, const Tensor weight, const OptionalTensor bias,
               int64_t activation) {
  const DeviceCall device("embedding", embedding);
  check_embedding_linear(ids, embedding, weight, bias, activation);
  Arguments arguments(ids, embedding, weight, bias, activation);
  const Tensor output = allocate(layer_shape(ids, weight), embedding.scalar_type(), device.device);
  arguments.call.output = output.mutable_data_ptr();
  took_branch(cuda::embedding_linear_projects(arguments.call) ? "embedding_linear_forward/project"
                                                              : "embedding_linear_forward/gather");
  TorchLibrary library(device);
  device.check(cuda::embedding_linear_forward(arguments.call, library, device.stream()));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor grad_output, const Tensor output, const Tensor ids,
                                            const Tensor embedding, const Tensor weight, const OptionalTensor bias,
                                            int64_t activation, bool wants_embedding, bool wants_weight,
                                            bool wants_bias) {
  const DeviceCall device("embedding", embedding);
  check_embedding_linear(ids, embedding, weight, bias, activation);
  check_embedding_linear_backward(grad_output, output, embedding, layer_shape(ids, weight), wants_bias, bias);
  Arguments arguments(ids, embedding, weight, bias, activation);
  const Tensor upstream = as_contiguous(grad_output), result = as_contiguous(output);
  arguments.call.grad_output = upstream.const_data_ptr();
  arguments.call.output = const_cast<void*>(result.const_data_ptr());

  const auto gradient_of = [&](const Tensor& parameter, bool wanted, void** data) {
    const Tensor gradient = wanted ? allocate(parameter.sizes(), embedding.scalar_type(), device.device)
                                   : allocate({0}, embedding.scalar_type(), device.device);
    *data = wanted ? gradient.mutable_data_ptr() : nullptr;
    return gradient;
  };
  const Tensor embedding_gradient =
      gradient_of(arguments.embedding, wants_embedding, &arguments.call.embedding_gradient);
  const Tensor weight_gradient = gradient_of(arguments.weight, wants_weight, &arguments.call.weight_gradient);
  const Tensor bias_gradient =
      gradient_of(wants_bias ? *arguments.bias : arguments.weight, wants_bias, &arguments.call.bias_gradient);
  took_branch(cuda::embedding_linear_projects(arguments.call) ? "embedding_linear_backward/project"
                                                              : "embedding_linear_backward/gather");
  if (arguments.call.embedding_dim == 0) torch::stable::fill_(embedding_gradient, 0);
  TorchLibrary library(device);
  device.check(cuda::embedding_linear_backward(arguments.call, library, device.stream()));
  return {embedding_gradient, weight_gradient, bias_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, library) {
  library.impl("embedding_linear_forward", TORCH_BOX(&forward));
  library.impl("embedding_linear_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
