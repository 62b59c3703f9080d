#include "kernels/linear_cross_entropy.h"

#include "library.h"
#include "server.h"

namespace {

using simulator::Call;

template <typename T>
charlm::cuda::Error run(const Call& call) {
  using charlm::cuda::Matrix;
  charlm::cuda::LinearCrossEntropy<T> problem;
  const charlm::CrossEntropy<T>& loss = problem.loss = simulator::read_loss<T>(call);
  const int64_t features = call.integer("features");
  problem.input = Matrix(call.buffer<void>("input"), call.storage(), loss.rows, features);
  problem.weight = Matrix(call.buffer<void>("weight"), call.storage(), loss.classes, features);
  problem.bias = call.buffer<void>("bias");
  problem.mean = call.integer("mean") != 0;
  problem.row_loss = call.buffer<T>("row_loss");
  problem.total_loss = call.buffer<T>("total_loss");
  problem.upstream = call.buffer<T>("upstream");
  problem.input_gradient = call.buffer<void>("input_gradient");
  problem.weight_gradient = call.buffer<void>("weight_gradient");
  problem.bias_gradient = call.buffer<void>("bias_gradient");
  problem.chunk_rows = call.integer("chunk_rows");
  simulator::Library library;
  return charlm::cuda::linear_cross_entropy(problem, library, nullptr);
}

const simulator::Op op("linear_cross_entropy", [](const Call& call) {
  return call.storage() == charlm::Storage::kFloat64 ? run<double>(call) : run<float>(call);
});

}  // namespace
