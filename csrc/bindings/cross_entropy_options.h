// The options of cross_entropy, and what else the losses that have them do with torch's tensors.
#pragma once

#include "bindings/checks.h"
#include "kernels/cross_entropy.h"
#include "kernels/host_library.h"

namespace charlm {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

struct CrossEntropyOptions {
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing, softcap, z_loss;
};

// Throws unless every option is in its range.
CrossEntropyOptions cross_entropy_options(int64_t ignore_index, int64_t reduction, double label_smoothing,
                                          double softcap, double z_loss);

// An ignore_index is no option of class probabilities; a negative one is the default.
void check_ignores_nothing(const CrossEntropyOptions& options);

// Fills in the options that are numbers.
template <typename T>
void set_options(const CrossEntropyOptions& options, CrossEntropy<T>* problem);

// Class weights (C,), converted into `holder`, which must outlive the problem.
template <typename T>
void set_weight(const OptionalTensor& weight, const Tensor& input, OptionalTensor* holder, CrossEntropy<T>* problem);

// Token weights, in the shape of the row losses, converted into `holder` likewise.
template <typename T>
void set_token_weights(const OptionalTensor& token_weights, Shape row_shape, const Tensor& input,
                       OptionalTensor* holder, CrossEntropy<T>* problem);

// Throws IndexError at the first target that is neither a class nor ignore_index. `shape` is the shape to name it in.
template <typename T>
void check_targets(const CrossEntropy<T>& problem, Shape shape);

// How many values forward hands to backward: shift and log_sum of every row, and what a mean divides by.
inline int64_t lse_values(int64_t rows, Reduction reduction) {
  return 2 * rows + (reduction == Reduction::kMean ? 1 : 0);
}
template <typename T>
void set_lse(T* values, Reduction reduction, CrossEntropy<T>* problem) {
  problem->shift = values;
  problem->log_sum = values + problem->rows;
  problem->denominator = reduction == Reduction::kMean ? values + 2 * problem->rows : nullptr;
}
template <typename T>
void set_lse(const Tensor& lse, Reduction reduction, CrossEntropy<T>* problem);

// What the sum of the row losses is divided by. On the CPU; forward keeps it where it keeps lse.
template <typename T>
T denominator_of(Reduction reduction, const CrossEntropy<T>& problem) {
  if (reduction != Reduction::kMean) return 1;
  if (problem.lse_is_known) return *problem.denominator;
  const T denominator = cpu::mean_denominator(problem);
  if (problem.denominator != nullptr) *problem.denominator = denominator;
  return denominator;
}

// What forward keeps of each row for backward: all that its kernels need to compute the gradient, or, where forward has
// computed it, what it lacks of the logits in half precision.
enum class Kept { kLse, kTargetLogProbability };

// What forward returns beside gradients: the problem's row losses and what it keeps are its memory.
template <typename T>
class Losses {
 public:
  // `shape` is that of row losses, which "none" returns. Gradients are divided by the mean's denominator.
  Losses(Reduction reduction, Shape shape, Kept kept, CrossEntropy<T>* problem);
  // In the compute dtype: of `shape` for "none", otherwise a scalar. For a problem whose losses are known.
  Tensor reduced(const CrossEntropy<T>& problem) const;
  const Tensor& kept() const { return kept_; }  // (lse_values(N, reduction),) or (N,)

 private:
  Reduction reduction_;
  Tensor result_, kept_;
  Workspace<T> rows_;  // (N,) where the result has no room for them
  T denominator_;
};

// Sets the upstream gradient: per row under "none" (converted into `holder`), folded into the scale otherwise. After
// set_lse.
template <typename T>
void set_upstream(const Tensor& grad_output, Reduction reduction, OptionalTensor* holder, CrossEntropy<T>* problem);

}  // namespace charlm
