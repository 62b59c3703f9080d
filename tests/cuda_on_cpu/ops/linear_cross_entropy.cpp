#include "kernels/linear_cross_entropy.h"

#include "library.h"
#include "server.h"

namespace {

using simulator::Call;

template <typename T>
charlm::cuda::Error run(const Call& call) {
  using charlm::cuda::Matrix;
  charlm::cuda::LinearCrossEntropy<T> problem;
  charlm::CrossEntropy<T>& loss = problem.loss;
  loss.rows = call.integer("rows");
  loss.classes = call.integer("classes");
  loss.target = call.buffer<int64_t>("target");
  loss.ignore_index = call.integer("ignore_index");
  loss.probabilities = call.class_matrix("probabilities");
  loss.probabilities_gradient = call.class_matrix("probabilities_gradient");
  loss.weight = call.buffer<T>("class_weight");
  loss.label_smoothing = static_cast<T>(call.real("label_smoothing"));
  loss.softcap = static_cast<T>(call.real("softcap"));
  loss.z_loss = static_cast<T>(call.real("z_loss"));
  loss.shift = call.buffer<T>("lse");
  loss.log_sum = loss.shift + loss.rows;
  loss.lse_is_known = call.integer("lse_is_known") != 0;
  loss.row_scale = call.buffer<T>("row_scale");
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
