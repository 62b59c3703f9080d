// Softmax cross-entropy over N rows of C logits, and its gradient.
//
//   z = input, or softcap * tanh(input / softcap)
//   lse = log(sum_c exp(z_c))
//   loss = w (sum_c a_c (lse - z_c) + z_loss * lse^2)        w = token_weight, of the row
//   a_c = weight_c ((1 - smoothing) p_c + smoothing / C)     p_c = probability_c, or 1 for the target and 0 for the rest
//   d loss / d z_c = w (softmax_c (sum_c a_c + 2 z_loss lse) - a_c)
//
// Rows whose target is ignore_index have loss 0 and gradient 0, whatever their logits and weight.
#pragma once

#include <stdint.h>

#include <initializer_list>

#include "kernels/device.h"
#include "kernels/device_library.h"
#include "kernels/isa.h"
#include "kernels/storage.h"

namespace charlm {

template <typename T>  // the type computed in: float for all storage types but float64
struct CrossEntropy {
  int64_t rows = 0;     // N
  int64_t classes = 0;  // C
  ClassMatrix input;
  ClassMatrix input_gradient;       // data null: no gradient is computed
  const int64_t* target = nullptr;  // (N,), each in [0, C) or ignore_index; null: probabilities
  int64_t ignore_index = -100;
  ClassMatrix probabilities;           // used where target is null
  ClassMatrix probabilities_gradient;  // data null: not computed
  const T* weight = nullptr;           // (C,), null: all 1
  const T* token_weights = nullptr;    // (N,), null: all 1
  T label_smoothing = 0;
  T softcap = 0;  // 0: none
  T z_loss = 0;
  T* loss = nullptr;  // (N,), null where lse_is_known: the forward pass has given it
  // (N,) each, written where not null, or read where lse_is_known: lse = shift + log_sum, apart so that z - shift
  // cancels exactly.
  T* shift = nullptr;
  T* log_sum = nullptr;
  bool lse_is_known = false;
  // (1,), what a mean divides by: like lse written where not null, or read where lse_is_known.
  T* denominator = nullptr;
  T* target_log_probability = nullptr;  // (N,), of class indices, on the CPU alone; null: not wanted
  const T* row_scale = nullptr;         // (N,), upstream gradient of each row; null: 1
  T scale = 1;                          // every gradient is scale * row_scale * d loss / d input
};

// The problem of some of its rows. Its input and input_gradient stay as they are.
template <typename T>
CrossEntropy<T> rows_from(const CrossEntropy<T>& problem, int64_t first, int64_t rows) {
  CrossEntropy<T> part = problem;
  part.rows = rows;
  if (part.target != nullptr) part.target += first;
  if (part.token_weights != nullptr) part.token_weights += first;
  if (part.loss != nullptr) part.loss += first;
  if (part.shift != nullptr) part.shift += first;
  if (part.log_sum != nullptr) part.log_sum += first;
  if (part.row_scale != nullptr) part.row_scale += first;
  for (ClassMatrix* matrix : {&part.probabilities, &part.probabilities_gradient}) {
    if (matrix->data == nullptr) continue;
    matrix->data = static_cast<char*>(matrix->data) + first * matrix->outer_stride * storage_size(matrix->storage);
  }
  return part;
}

// Rows are worked on in tiles cut by shape alone, so that results do not depend on the number of threads: as many rows
// as keep a tile and its gradient within the first-level cache, at least one.
inline constexpr int64_t kCrossEntropyMaxTileRows = 64;
inline int64_t cross_entropy_tile_rows(int64_t classes) {
  const int64_t rows = 4096 / (classes > 0 ? classes : 1);
  return rows < 1 ? 1 : rows > kCrossEntropyMaxTileRows ? kCrossEntropyMaxTileRows : rows;
}

namespace cpu {
template <typename T>
struct CrossEntropyKernels {
  // Tiles [first, last). scratch holds cross_entropy_scratch(problem) values, one block per concurrent call.
  void (*tiles)(const CrossEntropy<T>& problem, int64_t first, int64_t last, T* scratch);
  void (*scale_rows)(const ClassMatrix& matrix, int64_t rows, int64_t classes, const T* factors);
};
CHARLM_DECLARE_KERNELS(CrossEntropyKernels<float>)
CHARLM_DECLARE_KERNELS(CrossEntropyKernels<double>)
CHARLM_DECLARE_NARROW_KERNELS(CrossEntropyKernels<float>)
CHARLM_DECLARE_NARROW_KERNELS(CrossEntropyKernels<double>)

template <typename T>
int64_t cross_entropy_scratch(const CrossEntropy<T>& problem) {
  return 4 * cross_entropy_tile_rows(problem.classes) * problem.classes;
}

// Losses and lse of all rows, and the gradients whose data is not null; where lse_is_known, the gradients alone.
template <typename T>
void cross_entropy(const CrossEntropy<T>& problem);

// Multiplies each row of a matrix by its factor, (N,). In the calling thread.
template <typename T>
void scale_rows(const ClassMatrix& matrix, int64_t rows, int64_t classes, const T* factors);

// The place of the first of `count` class indices that is neither a class nor ignore_index; -1 if there is none.
int64_t first_bad_class(const int64_t* indices, int64_t count, int64_t classes, int64_t ignore_index);

// What a mean over rows divides by: the sum of w weight_target over the rows that count, or, of probabilities, of w. It
// walks all targets, so callers keep it.
template <typename T>
T mean_denominator(const CrossEntropy<T>& problem);

// The sum of the row losses, in a fixed order, over partial sums that let the additions overlap.
template <typename T>
double total_loss(const CrossEntropy<T>& problem);
}  // namespace cpu

// On a GPU a target that is neither a class nor ignore_index makes the loss and the gradient of its row NaN, and its
// row does not count in a mean. Everything below is memory of the device; nothing waits for it.
namespace cuda {

template <typename T>
struct CrossEntropyCall {
  CrossEntropy<T> problem;      // its loss is not used
  bool mean = false;            // divides gradients, and the result, by the mean's denominator
  T* row_loss = nullptr;        // (N,); null: not wanted
  T* total_loss = nullptr;      // (1,); null: not wanted
  const T* upstream = nullptr;  // (1,), one more factor of every gradient; null: 1
};

// Losses and lse, and the gradients whose data is not null; where lse_is_known, the gradients alone.
template <typename T>
Error cross_entropy(const CrossEntropyCall<T>& call, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
