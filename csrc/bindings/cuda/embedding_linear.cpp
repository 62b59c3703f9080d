#include "bindings/cuda/torch_library.h"
#include "bindings/embedding_linear_arguments.h"

namespace charlm {
namespace {

// The checked arguments, contiguous, and the call that points into them, but for the table.
struct Arguments {
  Tensor ids, weight;
  OptionalTensor bias;
  cuda::EmbeddingLinearCall call;

  Arguments(const Tensor& ids, const Tensor& weight, const OptionalTensor& bias, int64_t activation, int64_t vocab_size,
            int64_t embedding_dim)
      : ids(ids.size(ids.dim() - 1) > 0 ? with_rows(ids) : one_token_each(ids)),
        weight(as_contiguous(weight)),
        bias(contiguous_as(bias, weight.scalar_type())) {
    call.ids = token_ids(this->ids);
    // Contexts of no tokens are computed as contexts of one token, which has no dimensions.
    const bool has_tokens = ids.size(ids.dim() - 1) > 0;
    call.vocab_size = has_tokens ? vocab_size : 1;
    call.embedding_dim = has_tokens ? embedding_dim : 0;
    call.hidden_dim = weight.size(0);
    call.activation = static_cast<Activation>(activation);
    call.storage = storage_of(weight);
    call.weight = this->weight.const_data_ptr();
    call.bias = this->bias.has_value() ? this->bias->const_data_ptr() : nullptr;
  }

 private:
  static Tensor one_token_each(const Tensor& ids) {
    const int64_t rows = context_rows(ids);
    return zeros({rows, 1}, ScalarType::Int, ids.device());
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor ids, const Tensor embedding, const Tensor weight,
                                   const OptionalTensor bias, int64_t activation, bool keeps_rows) {
  const DeviceCall device("embedding", embedding);
  check_embedding_linear(ids, embedding, weight, bias, activation);
  Arguments arguments(ids, weight, bias, activation, embedding.size(0), embedding.size(1));
  const Tensor table = as_contiguous(embedding);
  arguments.call.embedding = table.const_data_ptr();
  const Tensor output = allocate(layer_shape(ids, weight), embedding.scalar_type(), device.device);
  arguments.call.output = output.mutable_data_ptr();
  // A table that is no larger than what is picked from it is copied; that of "project" always is.
  const bool keeps_picked = keeps_rows && keeps_picked_rows(ids, embedding.size(0));
  const int64_t count = keeps_picked ? ids.numel() : embedding.size(0);
  Tensor rows = keeps_rows ? allocate({count, embedding.size(1)}, embedding.scalar_type(), device.device)
                           : allocate({0}, embedding.scalar_type(), device.device);
  if (keeps_picked) {
    arguments.call.picked_rows = rows.mutable_data_ptr();
  } else if (keeps_rows) {
    torch::stable::copy_(rows, embedding);
  }
  took_branch(cuda::embedding_linear_projects(arguments.call) ? "embedding_linear_forward/project"
                                                              : "embedding_linear_forward/gather");
  TorchLibrary library(device);
  device.check(cuda::embedding_linear_forward(arguments.call, library, device.stream()));
  return {output, rows};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor grad_output, const Tensor output, const Tensor ids,
                                            const Tensor rows, const Tensor weight, const OptionalTensor bias,
                                            int64_t activation, int64_t vocab_size, bool wants_embedding,
                                            bool wants_weight, bool wants_bias) {
  const DeviceCall device("rows", rows);
  check_embedding_linear_backward(grad_output, output, ids, rows, weight, bias, activation, vocab_size);
  Arguments arguments(ids, weight, bias, activation, vocab_size, rows.size(1));
  if (keeps_picked_rows(ids, vocab_size)) {
    arguments.call.picked_rows = const_cast<void*>(rows.const_data_ptr());
  } else {
    arguments.call.embedding = rows.const_data_ptr();
  }
  const Tensor upstream = as_contiguous(grad_output), result = as_contiguous(output);
  arguments.call.grad_output = upstream.const_data_ptr();
  arguments.call.output = const_cast<void*>(result.const_data_ptr());

  const auto gradient_of = [&](std::initializer_list<int64_t> shape, bool wanted, void** data) {
    const Tensor gradient =
        wanted ? allocate(shape, rows.scalar_type(), device.device) : allocate({0}, rows.scalar_type(), device.device);
    *data = wanted ? gradient.mutable_data_ptr() : nullptr;
    return gradient;
  };
  const Tensor embedding_gradient =
      gradient_of({vocab_size, rows.size(1)}, wants_embedding, &arguments.call.embedding_gradient);
  const Tensor weight_gradient =
      gradient_of({weight.size(0), weight.size(1)}, wants_weight, &arguments.call.weight_gradient);
  const Tensor bias_gradient = gradient_of({weight.size(0)}, wants_bias, &arguments.call.bias_gradient);
  took_branch(cuda::embedding_linear_projects(arguments.call) ? "embedding_linear_backward/project"
                                                              : "embedding_linear_backward/gather");
  if (arguments.call.embedding_dim == 0) torch::stable::fill_(embedding_gradient, 0);
  TorchLibrary library(device);
  device.check(cuda::embedding_linear_backward(arguments.call, library, device.stream()));
  return {embedding_gradient, weight_gradient, bias_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CUDA, ops) {
  ops.impl("embedding_linear_forward", TORCH_BOX(&forward));
  ops.impl("embedding_linear_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
