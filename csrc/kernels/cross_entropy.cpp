#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// Up to so many logits narrow vectors take less time than waking wide ones.
constexpr int64_t kNarrowValues = 4096;

// Rows without classes: logsumexp is -inf, and there is no gradient to write.
template <typename T>
void write_rows_without_classes(const CrossEntropy<T>& problem) {
  if (problem.lse_is_known) return;
  for (int64_t n = 0; n < problem.rows; ++n) {
    const bool counts = problem.target == nullptr;  // no class index is one of none
    problem.loss[n] = counts && problem.z_loss != 0 ? std::numeric_limits<T>::infinity() : 0;
    if (counts && problem.token_weights != nullptr) problem.loss[n] *= problem.token_weights[n];
    if (problem.shift != nullptr) problem.shift[n] = -std::numeric_limits<T>::infinity();
    if (problem.log_sum != nullptr) problem.log_sum[n] = 0;
    if (problem.target_log_probability != nullptr) problem.target_log_probability[n] = 0;
  }
}

template <typename T>
CrossEntropyKernels<T> kernels_for(int64_t values) {
  return values <= kNarrowValues ? select_narrow<CrossEntropyKernels<T>>() : select<CrossEntropyKernels<T>>();
}

}  // namespace

template <typename T>
void cross_entropy(const CrossEntropy<T>& problem) {
  if (problem.classes == 0) return write_rows_without_classes(problem);
  const int64_t tile_rows = cross_entropy_tile_rows(problem.classes);
  const int64_t tiles = (problem.rows + tile_rows - 1) / tile_rows;
  const auto run = kernels_for<T>(problem.rows * problem.classes).tiles;
  // About 64K exponentials are worth waking a thread for.
  const int64_t grain = 1 + 65536 / (tile_rows * problem.classes);
  parallel_for(tiles, grain, [&](int64_t first, int64_t last) {
    const Workspace<T> scratch(cross_entropy_scratch(problem));
    run(problem, first, last, scratch.data());
  });
}

template <typename T>
void scale_rows(const ClassMatrix& matrix, int64_t rows, int64_t classes, const T* factors) {
  kernels_for<T>(rows * classes).scale_rows(matrix, rows, classes, factors);
}

int64_t first_bad_class(const int64_t* indices, int64_t count, int64_t classes, int64_t ignore_index) {
  // As unsigned numbers, negative classes are too large as well.
  const auto limit = static_cast<uint64_t>(classes);
  const auto is_bad = [&](int64_t y) { return (static_cast<uint64_t>(y) >= limit) & (y != ignore_index); };
  int64_t bad = 0;  // counted without a branch
  for (int64_t i = 0; i < count; ++i) bad += is_bad(indices[i]);
  if (bad == 0) [[likely]] {
    return -1;
  }
  int64_t place = 0;
  while (!is_bad(indices[place])) ++place;
  return place;
}

template <typename T>
T mean_denominator(const CrossEntropy<T>& problem) {
  const bool has_probabilities = problem.target == nullptr;
  // Counted as torch counts them, by elements: 0 / 0 without classes.
  if (has_probabilities && problem.classes == 0) return static_cast<T>(NAN);
  if (has_probabilities && problem.token_weights == nullptr) return static_cast<T>(problem.rows);
  if (problem.weight == nullptr && problem.token_weights == nullptr) {
    int64_t count = 0;
    for (int64_t n = 0; n < problem.rows; ++n) count += problem.target[n] != problem.ignore_index;
    return static_cast<T>(count);
  }
  double total = 0;
  for (int64_t n = 0; n < problem.rows; ++n) {
    if (!has_probabilities && problem.target[n] == problem.ignore_index) continue;
    const double class_weight = has_probabilities || problem.weight == nullptr ? 1 : problem.weight[problem.target[n]];
    total += problem.token_weights != nullptr ? class_weight * problem.token_weights[n] : class_weight;
  }
  return static_cast<T>(total);
}

template <typename T>
double total_loss(const CrossEntropy<T>& problem) {
  double partial[8] = {};
  int64_t n = 0;
  for (; n + 8 <= problem.rows; n += 8) {
    for (int lane = 0; lane < 8; ++lane) partial[lane] += problem.loss[n + lane];
  }
  for (; n < problem.rows; ++n) partial[n % 8] += problem.loss[n];
  double total = 0;
  for (double value : partial) total += value;
  return total;
}

template void cross_entropy(const CrossEntropy<float>&);
template void cross_entropy(const CrossEntropy<double>&);
template void scale_rows(const ClassMatrix&, int64_t, int64_t, const float*);
template void scale_rows(const ClassMatrix&, int64_t, int64_t, const double*);
template float mean_denominator(const CrossEntropy<float>&);
template double mean_denominator(const CrossEntropy<double>&);
template double total_loss(const CrossEntropy<float>&);
template double total_loss(const CrossEntropy<double>&);

}  // namespace charlm::cpu
