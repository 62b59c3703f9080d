#include "kernels/mlp_cross_entropy.h"

#include "library.h"
#include "server.h"

namespace {

using simulator::Call;

template <typename T>
charlm::cuda::Error run(const Call& call) {
  charlm::cuda::MlpCrossEntropy<T> problem;
  problem.has_gradient = call.integer("has_gradient") != 0;
  charlm::cuda::EmbeddingLinearCall& hidden = problem.hidden;
  hidden.ids = call.token_ids();
  hidden.vocab_size = call.integer("vocab_size");
  hidden.embedding_dim = call.integer("embedding_dim");
  hidden.hidden_dim = call.integer("hidden_dim");
  hidden.storage = call.storage();
  hidden.embedding = call.buffer<void>("embedding");
  hidden.weight = call.buffer<void>("weight1");
  hidden.bias = call.buffer<void>("bias1");
  hidden.embedding_gradient = call.buffer<void>("embedding_gradient");
  hidden.weight_gradient = call.buffer<void>("weight1_gradient");
  hidden.bias_gradient = call.buffer<void>("bias1_gradient");

  charlm::cuda::LinearCrossEntropy<T>& output = problem.output;
  output.weight =
      charlm::cuda::Matrix(call.buffer<void>("weight2"), hidden.storage, hidden.vocab_size, hidden.hidden_dim);
  output.bias = call.buffer<void>("bias2");
  output.loss.rows = hidden.ids.rows;
  output.loss.classes = hidden.vocab_size;
  output.loss.target = call.buffer<int64_t>("target");
  output.loss.ignore_index = call.integer("ignore_index");
  output.loss.softcap = static_cast<T>(call.real("softcap"));
  output.loss.row_scale = call.buffer<T>("row_scale");
  output.upstream = call.buffer<T>("upstream");
  output.mean = call.integer("mean") != 0;
  output.row_loss = call.buffer<T>("row_loss");
  output.total_loss = call.buffer<T>("total_loss");
  output.weight_gradient = call.buffer<void>("weight2_gradient");
  output.bias_gradient = call.buffer<void>("bias2_gradient");
  output.chunk_rows = call.integer("chunk_rows");
  simulator::Library library;
  return charlm::cuda::mlp_cross_entropy(problem, library, nullptr);
}

const simulator::Op op("mlp_cross_entropy", [](const Call& call) {
  return call.storage() == charlm::Storage::kFloat64 ? run<double>(call) : run<float>(call);
});

}  // namespace
