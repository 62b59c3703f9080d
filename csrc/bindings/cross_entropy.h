// The options and the reduction that cross_entropy and linear_cross_entropy share.
#pragma once

#include "bindings/check.h"
#include "kernels/cross_entropy.h"

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

// Fills the options in; `weight` (C,) is converted into `holder`, which must outlive the problem.
template <typename T>
void set_options(const CrossEntropyOptions& options, const OptionalTensor& weight, const Tensor& input,
                 OptionalTensor* holder, CrossEntropy<T>* problem);

// Throws IndexError at the first target that is neither a class nor ignore_index. `shape` is the shape to name it in.
template <typename T>
void check_targets(const CrossEntropy<T>& problem, torch::headeronly::IntHeaderOnlyArrayRef shape);

// What the sum over rows is divided by: under "mean" the weights of the targets that count, or the number of rows of
// probabilities; otherwise 1. It walks all targets, so callers keep it.
template <typename T>
T denominator_of(const CrossEntropy<T>& problem, Reduction reduction);

// Row losses (N,) to the op's result: `shape` for "none", otherwise a scalar; in the compute dtype.
template <typename T>
Tensor reduce(const CrossEntropy<T>& problem, Reduction reduction, T denominator, const Tensor& row_loss,
              torch::headeronly::IntHeaderOnlyArrayRef shape);

// The (2, N) tensor that forward hands to backward: shift, then log_sum, of every row.
template <typename T>
void set_lse(const Tensor& lse, CrossEntropy<T>* problem);

// Sets the upstream gradient: per row under "none" (converted into `holder`), folded into the scale otherwise.
template <typename T>
void set_upstream(const Tensor& grad_output, Reduction reduction, OptionalTensor* holder, CrossEntropy<T>* problem);

// All tiles of the problem, in parallel.
template <typename T>
void run_tiles(const CrossEntropy<T>& problem);

}  // namespace charlm
