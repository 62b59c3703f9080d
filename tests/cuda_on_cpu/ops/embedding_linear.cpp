#include "kernels/embedding_linear.h"

#include "library.h"
#include "server.h"

namespace {

using simulator::Call;

const simulator::Op op("embedding_linear", [](const Call& call) {
  charlm::cuda::EmbeddingLinearCall layer;
  layer.ids = call.token_ids();
  layer.vocab_size = call.integer("vocab_size");
  layer.embedding_dim = call.integer("embedding_dim");
  layer.hidden_dim = call.integer("hidden_dim");
  layer.activation = static_cast<charlm::Activation>(call.integer("activation"));
  layer.storage = call.storage();
  layer.embedding = call.buffer<void>("embedding");
  layer.weight = call.buffer<void>("weight");
  layer.bias = call.buffer<void>("bias");
  layer.output = call.buffer<void>("output");
  layer.grad_output = call.buffer<void>("grad_output");
  layer.picked_rows = call.buffer<void>("picked_rows");
  layer.embedding_gradient = call.buffer<void>("embedding_gradient");
  layer.weight_gradient = call.buffer<void>("weight_gradient");
  layer.bias_gradient = call.buffer<void>("bias_gradient");
  *call.buffer<int64_t>("projects") = charlm::cuda::embedding_linear_projects(layer);
  simulator::Library library;
  return layer.grad_output != nullptr ? charlm::cuda::embedding_linear_backward(layer, library, nullptr)
                                      : charlm::cuda::embedding_linear_forward(layer, library, nullptr);
});

}  // namespace
