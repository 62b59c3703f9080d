#include "kernels/log_probs.h"

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// Up to so many logits narrow vectors take less time than waking wide ones.
constexpr int64_t kNarrowValues = 4096;
// Exponentials, and rows, that are worth waking a thread for.
constexpr int64_t kValueGrain = 1 << 16, kRowGrain = 1 << 12;

template <typename T>
const LogProbsKernels<T>& kernels_for(const LogProbs<T>& problem) {
  return problem.rows * problem.classes <= kNarrowValues ? select_narrow<LogProbsKernels<T>>()
                                                         : select<LogProbsKernels<T>>();
}

// function(first row, last row, scratch) over whole tiles.
template <typename T, typename Function>
void for_each_tile(const LogProbs<T>& problem, const Function& function) {
  const int64_t tile_rows = cross_entropy_tile_rows(problem.classes);
  parallel_for_columns(problem.rows, tile_rows, 1 + kValueGrain / (problem.classes > 0 ? problem.classes : 1),
                       [&](int64_t first, int64_t last) {
                         const Workspace<T> scratch(log_probs_scratch(problem));
                         function(first, last, scratch.data());
                       });
}

}  // namespace

template <typename T>
void add_classes(const LogProbs<T>& problem, int64_t first_class, LogProbsRow<T>* sums) {
  const auto add = kernels_for(problem).add;
  for_each_tile(
      problem, [&](int64_t first, int64_t last, T* scratch) { add(problem, first_class, first, last, sums, scratch); });
}

template <typename T>
void finish_log_probs(const LogProbs<T>& problem, const LogProbsRow<T>* sums) {
  const auto finish = kernels_for(problem).finish;
  parallel_for(problem.rows, kRowGrain, [&](int64_t first, int64_t last) { finish(problem, first, last, sums); });
}

template <typename T>
void log_probs_gradient(const LogProbs<T>& problem, int64_t first_class) {
  const auto gradient = kernels_for(problem).gradient;
  for_each_tile(problem,
                [&](int64_t first, int64_t last, T* scratch) { gradient(problem, first_class, first, last, scratch); });
}

template <typename T>
void log_probs(const LogProbs<T>& problem) {
  const Workspace<LogProbsRow<T>> sums(problem.rows);
  with_storage<T>(problem.input.data, problem.input.storage, [&](const auto* input) {
    for (int64_t n = 0; n < problem.rows; ++n) {
      LogProbsRow<T>& row = sums.data()[n] = {};
      if (problem.ids_per_row == 0) continue;
      const int64_t id = problem.ids[n * problem.ids_per_row];
      if (id == problem.ignore_index) continue;
      row.first_input = to_compute(input[problem.input.row_offset(n) + id * problem.input.class_stride]);
    }
  });
  add_classes(problem, 0, sums.data());
  finish_log_probs(problem, sums.data());
}

template void log_probs(const LogProbs<float>&);
template void log_probs(const LogProbs<double>&);
template void add_classes(const LogProbs<float>&, int64_t, LogProbsRow<float>*);
template void add_classes(const LogProbs<double>&, int64_t, LogProbsRow<double>*);
template void finish_log_probs(const LogProbs<float>&, const LogProbsRow<float>*);
template void finish_log_probs(const LogProbs<double>&, const LogProbsRow<double>*);
template void log_probs_gradient(const LogProbs<float>&, int64_t);
template void log_probs_gradient(const LogProbs<double>&, int64_t);

}  // namespace charlm::cpu
