// log_probs(input weight^T + bias) without its (N, C) logits: products of matrices, and the kernels of log_probs on a
// bounded piece of the logits at a time. Backward computes the piece again, and its gradient takes its place.
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
  LogProbs<T> log_probs;  // its input and input_gradient are not read, the pieces' take their place
};

template <typename T>
void linear_log_probs(const LinearLogProbs<T>& problem);

template <typename T>
void linear_log_probs_gradient(const LinearLogProbs<T>& problem);

}  // namespace cpu

}  // namespace charlm
