// log_probs(input weight^T + bias) without its (N, C) logits: products of matrices, and the kernels of log_probs on a
// bounded piece of the logits at a time. Backward computes the piece again, and its gradient takes its place; or the
// logits of as many rows as fit wait for it in the memory that the weight's gradient is going to have.
#pragma once

#include "kernels/log_probs.h"
#include "kernels/output_layer.h"

namespace charlm {

namespace cpu {

// A piece is a block of classes of many rows: as a row's sums can be added to, forward needs no whole row, and the
// weight is read once for many rows.
template <typename T>
struct LinearLogProbs {
  OutputLayer<T> layer;
  Matrix weight_gradient;  // (C, D) contiguous, in the weight's storage or in that of T; data null: not wanted
  LogProbs<T> log_probs;   // its input and input_gradient are not read, the pieces' take their place
  // As the gradient of the weight, whose rows have room for some values of T each; data null: none. Forward leaves the
  // logits of as many rows there, each block as a (rows, block's classes) matrix of T at the start of these classes'
  // rows. Backward reads them; the weight's gradient may be in their place.
  Matrix logits;

  // How many rows these are, the first ones.
  int64_t kept_rows() const {
    if (logits.data == nullptr) return 0;
    const int64_t room = logits.columns * storage_size(logits.storage) / static_cast<int64_t>(sizeof(T));
    return room < log_probs.rows ? room : log_probs.rows;
  }
};

template <typename T>
void linear_log_probs(const LinearLogProbs<T>& problem);

template <typename T>
void linear_log_probs_gradient(const LinearLogProbs<T>& problem);

}  // namespace cpu

// On a GPU a chunk of rows at a time. Everything is memory of the device; nothing waits for it. Out-of-range ids: see
// kernels/log_probs.h; the NaN of such a row's gradient reaches those of weight and bias.
namespace cuda {

template <typename T>
struct LinearLogProbs {
  OutputLayer layer;
  LogProbs<T> log_probs;  // its input and input_gradient are not read, the chunks' take their place
};

template <typename T>
Error linear_log_probs(const LinearLogProbs<T>& problem, DeviceLibrary& library, Stream stream);

template <typename T>
Error linear_log_probs_gradient(const LinearLogProbs<T>& problem, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
