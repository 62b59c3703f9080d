// The arguments and results of log_probs and linear_log_probs: what their bindings for the CPU and for CUDA share.
#pragma once

#include "bindings/checks.h"
#include "kernels/log_probs.h"

namespace charlm {

struct LogProbsOptions {
  int64_t ignore_index;
  double temperature, softcap;
};

// Throws unless every option is in its range.
LogProbsOptions log_probs_options(int64_t ignore_index, double temperature, double softcap);

// Fills in sizes, ids and options. ids (...) or (..., K) of an input (..., D) become (N, K) in `holder`, which must
// outlive the problem. Their values are not checked, for which see check_ids.
template <typename T>
void set_ids(const Tensor& ids, const Tensor& input, int64_t classes, const LogProbsOptions& options, Tensor* holder,
             LogProbs<T>* problem);

// Throws IndexError at the first id that is neither a class nor ignore_index. On the CPU.
template <typename T>
void check_ids(const LogProbs<T>& problem, Shape shape);

// Logits (..., C), checked and laid out as kernels want them.
struct Logits {
  Tensor tensor;
  ClassMatrix rows;
};
Logits read_logits(const Tensor& input);
// Memory for their gradient, with their strides where these cover memory.
Logits empty_logits(const Tensor& like);

// log_probs, entropy, logsumexp, argmax, rank and what backward reads (3, N): see schemas.cpp.
using LogProbsResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// Their memory, which is the problem's from then on. `input` has the leading dimensions.
template <typename T>
LogProbsResults allocate_results(const Tensor& ids, const Tensor& input, LogProbs<T>* problem);

// What forward has left for backward.
template <typename T>
void set_kept(const Tensor& kept, LogProbs<T>* problem);

// The upstream gradients of log_probs, entropy and logsumexp, those that there are, as what is computed in.
struct LogProbsUpstream {
  OptionalTensor log_probs, entropy, logsumexp;
};
template <typename T>
LogProbsUpstream set_upstream(const OptionalTensor& log_probs, const OptionalTensor& entropy,
                              const OptionalTensor& logsumexp, const Tensor& input, LogProbs<T>* problem);

}  // namespace charlm
