#include "kernels/cross_entropy.h"

#include "server.h"

namespace {

using charlm::CrossEntropy;
using charlm::cuda::CrossEntropyRun;
using charlm::cuda::Error;
using simulator::Call;

template <typename T>
CrossEntropy<T> problem_of(const Call& call) {
  CrossEntropy<T> problem = simulator::read_loss<T>(call);
  problem.input = call.class_matrix("input");
  problem.input_gradient = call.class_matrix("input_gradient");
  problem.scale = static_cast<T>(call.real("scale"));
  return problem;
}

// As bindings/cuda/cross_entropy.cpp does it.
template <typename T>
Error run(const Call& call) {
  const CrossEntropy<T> problem = problem_of<T>(call);
  CrossEntropyRun<T> run;
  const bool mean = call.integer("mean") != 0, reduces = call.integer("reduces") != 0;
  const bool has_gradient = problem.input_gradient.data != nullptr || problem.probabilities_gradient.data != nullptr;
  run.upstream = call.buffer<T>("upstream");
  if (has_gradient && mean && problem.target != nullptr) {
    T* denominators = simulator::workspace<T>(charlm::cuda::kDenominatorParts);
    if (const Error error = charlm::cuda::cross_entropy_denominators(problem, denominators, nullptr)) return error;
    run.denominators = denominators;
  }
  if (problem.lse_is_known) return charlm::cuda::cross_entropy(problem, run, nullptr);

  const int64_t parts = charlm::cuda::cross_entropy_parts(problem);
  if (reduces) {
    run.loss_parts = simulator::workspace<T>(parts);
    run.weight_parts = simulator::workspace<T>(parts);
  } else {
    run.row_loss = call.buffer<T>("loss");
  }
  run.split_rows = simulator::workspace<T>(charlm::cuda::cross_entropy_split_values(problem));
  if (const Error error = charlm::cuda::cross_entropy(problem, run, nullptr)) return error;
  if (!reduces) return 0;
  return charlm::cuda::cross_entropy_reduce(run.loss_parts, mean ? run.weight_parts : nullptr, parts,
                                            call.buffer<T>("loss"), nullptr);
}

const simulator::Op op("cross_entropy", [](const Call& call) {
  return call.storage() == charlm::Storage::kFloat64 ? run<double>(call) : run<float>(call);
});

}  // namespace
