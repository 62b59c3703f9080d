// The launches of cross_entropy, for this op and for those that have it as their last layer.
#pragma once

#include "kernels/cross_entropy.h"

namespace charlm::cuda {

// What a run needs beyond the problem, because only the device knows it or because it is made there.
template <typename T>
struct CrossEntropyRun {
  T* row_loss = nullptr;           // (N,); null: not wanted
  T* loss_parts = nullptr;         // (cross_entropy_parts(problem),), sums over some rows each; null: not wanted
  T* weight_parts = nullptr;       // as loss_parts: the denominator of a mean; null with it
  const T* upstream = nullptr;     // (1,), one more factor of every gradient; null: 1
  const T* denominator = nullptr;  // (1,), which divides every gradient; null: 1
  T* split_rows = nullptr;         // (cross_entropy_split_values(problem),)
};

// How the launches cut a problem, by its shape alone.
template <typename T>
int64_t cross_entropy_parts(const CrossEntropy<T>& problem);
template <typename T>
int64_t cross_entropy_split_values(const CrossEntropy<T>& problem);

// Has a run that follows divide gradients by the mean's denominator: the number of rows of probabilities; else the
// problem's, where lse_is_known, or what the targets say, which then becomes the problem's.
template <typename T>
Error divide_by_denominator(CrossEntropy<T>* problem, CrossEntropyRun<T>* run, DeviceLibrary& library, Stream stream);

// Losses and lse, and the gradients whose data is not null; where lse_is_known, the gradients alone.
template <typename T>
Error run_cross_entropy(const CrossEntropy<T>& problem, const CrossEntropyRun<T>& run, Stream stream);

// result = sum of loss_parts / sum of weight_parts, or of loss_parts alone where weight_parts is null; and the sum of
// the latter, unless weight_sum is null.
template <typename T>
Error reduce_cross_entropy(const T* loss_parts, const T* weight_parts, int64_t parts, T* result, T* weight_sum,
                           Stream stream);

}  // namespace charlm::cuda
