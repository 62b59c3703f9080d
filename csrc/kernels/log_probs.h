// Log-probabilities of K chosen classes of each of N rows of C logits, what else a softmax gives, and their gradient.
//
//   z = input / temperature, or softcap * tanh(input / softcap) / temperature
//   lse = log(sum_c exp(z_c))
//   log_prob_k = z_id_k - lse
//   entropy = lse - sum_c softmax_c z_c
//
// With the upstream gradients u_k, h and l of log_prob_k, entropy and lse:
//
//   d / d z_c = sum_k u_k [c = id_k] + softmax_c (l - sum_k u_k - h (z_c - lse + entropy))
//
// An id that is ignore_index has log_prob and gradient 0. A row that has ids, all of them ignored, does not count:
// entropy, lse and gradient are 0 as well, argmax and rank -1.
#pragma once

#include <stdint.h>

#include "kernels/cross_entropy.h"
#include "kernels/device.h"
#include "kernels/device_library.h"
#include "kernels/isa.h"
#include "kernels/storage.h"

namespace charlm {

template <typename T>  // the type computed in: float for all storage types but float64
struct LogProbs {
  int64_t rows = 0;     // N
  int64_t classes = 0;  // C
  ClassMatrix input;
  ClassMatrix input_gradient;    // of a backward pass; may take the place of the input
  const int64_t* ids = nullptr;  // (N, K), each in [0, C) or ignore_index
  int64_t ids_per_row = 0;       // K
  int64_t ignore_index = -100;
  T temperature = 1;
  T softcap = 0;  // 0: none
  // Results of a forward pass: (N, K), and (N,) each.
  T* log_probs = nullptr;
  T* entropy = nullptr;
  T* logsumexp = nullptr;
  int64_t* argmax = nullptr;  // the first class with the largest input that is a number
  int64_t* rank = nullptr;    // of the first id: the classes whose input is not at most its; -1 where it is ignored
  // (N,) each, from forward to backward: shift, the largest input after the cap, and log_sum, with which
  // lse = shift / temperature + log_sum, apart so that their difference from z cancels exactly; and the entropy.
  T* shift = nullptr;
  T* log_sum = nullptr;
  T* kept_entropy = nullptr;
  // Upstream gradients, as the results; null: 0.
  const T* log_probs_gradient = nullptr;
  const T* entropy_gradient = nullptr;
  const T* logsumexp_gradient = nullptr;

  CHARLM_HOST_DEVICE bool counts(int64_t row) const {
    bool is_counted = ids_per_row == 0;
    for (int64_t k = 0; k < ids_per_row; ++k) is_counted |= ids[row * ids_per_row + k] != ignore_index;
    return is_counted;
  }
};

// The problem of some of its rows. Its input and input_gradient stay as they are.
template <typename T>
LogProbs<T> rows_from(const LogProbs<T>& problem, int64_t first, int64_t rows) {
  LogProbs<T> part = problem;
  const auto advance = [](auto*& values, int64_t count) {
    if (values != nullptr) values += count;
  };
  part.rows = rows;
  advance(part.ids, first * problem.ids_per_row);
  advance(part.log_probs, first * problem.ids_per_row);
  advance(part.log_probs_gradient, first * problem.ids_per_row);
  for (T** values : {&part.entropy, &part.logsumexp, &part.shift, &part.log_sum, &part.kept_entropy}) {
    advance(*values, first);
  }
  for (const T** values : {&part.entropy_gradient, &part.logsumexp_gradient}) advance(*values, first);
  for (int64_t** values : {&part.argmax, &part.rank}) advance(*values, first);
  return part;
}

namespace cpu {

template <typename T>
int64_t log_probs_scratch(const LogProbs<T>& problem) {  // of a tile of inputs and gradients that are not rows
  return 2 * cross_entropy_tile_rows(problem.classes) * problem.classes;
}

// What is known of a row after some of its classes. Sums over many are in double: see cpu/log_probs.cpp.
template <typename T>
struct LogProbsRow {
  T first_input = 0;    // of the first id; known before any class is seen
  T largest = 0;        // input, of the classes so far
  int64_t argmax = -1;  // its class; -1: none was a number
  int64_t above = 0;    // classes whose input is not at most first_input
  T shift = 0;          // largest, after the cap
  double sum = 0;       // of e^(z - shift / temperature)
  double product = 0;   // of e^(z - shift / temperature) (z - shift / temperature)
};

template <typename T>
struct LogProbsKernels {
  // For rows [first, last). `problem` has the inputs of the classes [first_class, first_class + problem.classes) alone;
  // scratch holds log_probs_scratch(problem) values, one block per concurrent call.
  //
  // Adds these classes to the rows' sums, and copies the inputs of ids among them to log_probs.
  void (*add)(const LogProbs<T>& problem, int64_t first_class, int64_t first, int64_t last, LogProbsRow<T>* sums,
              T* scratch);
  // The results, from the sums over all classes, and from the inputs in log_probs.
  void (*finish)(const LogProbs<T>& problem, int64_t first, int64_t last, const LogProbsRow<T>* sums);
  // The gradient of these classes.
  void (*gradient)(const LogProbs<T>& problem, int64_t first_class, int64_t first, int64_t last, T* scratch);
};
CHARLM_DECLARE_KERNELS(LogProbsKernels<float>)
CHARLM_DECLARE_KERNELS(LogProbsKernels<double>)
CHARLM_DECLARE_NARROW_KERNELS(LogProbsKernels<float>)
CHARLM_DECLARE_NARROW_KERNELS(LogProbsKernels<double>)

// The results of all rows, whose inputs are all there.
template <typename T>
void log_probs(const LogProbs<T>& problem);

// Its parts, for inputs that are made a block of classes at a time: problem.classes, from first_class on. `sums` are
// (N,), and have first_input before the first block.
template <typename T>
void add_classes(const LogProbs<T>& problem, int64_t first_class, LogProbsRow<T>* sums);
template <typename T>
void finish_log_probs(const LogProbs<T>& problem, const LogProbsRow<T>* sums);

// The gradient of all rows by such classes.
template <typename T>
void log_probs_gradient(const LogProbs<T>& problem, int64_t first_class = 0);

}  // namespace cpu

// On a GPU an id that is neither a class nor ignore_index is never used as one: its log_prob is NaN, its rank -1 where
// it is the first, and the gradient of its row NaN. Everything is memory of the device; nothing waits for it.
namespace cuda {

// The results of all rows.
template <typename T>
Error log_probs(const LogProbs<T>& problem, Stream stream);

// Their gradient.
template <typename T>
Error log_probs_gradient(const LogProbs<T>& problem, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
