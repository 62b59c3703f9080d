// One row of softmax cross-entropy: what a thread gathers while it walks over classes, how the parts of several threads
// merge, and what follows from the whole. The formula is in kernels/cross_entropy.h.
#pragma once

#include "kernels/cuda/cross_entropy_run.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.cuh"

namespace charlm::cuda {

// kPlain: class indices without smoothing or cap. The general form has all options, and costs registers and arithmetic.
template <typename T>
bool is_plain(const CrossEntropy<T>& p) {
  return p.target != nullptr && p.label_smoothing == 0 && p.softcap == 0;
}

// Whether sum_c a_c takes a walk over all classes, and is not known beforehand.
template <typename T>
__host__ __device__ bool total_is_unknown(const CrossEntropy<T>& p) {
  return p.target == nullptr || (p.label_smoothing != 0 && p.weight != nullptr);
}

template <typename T, bool kPlain>
__device__ inline T logit(const CrossEntropy<T>& p, T input) {
  if constexpr (!kPlain) {
    if (p.softcap != 0) return p.softcap * tanh(input / p.softcap);
  }
  return input;
}

// d logit / d input
template <typename T, bool kPlain>
__device__ inline T logit_slope(const CrossEntropy<T>& p, T input) {
  if constexpr (!kPlain) {
    if (p.softcap != 0) {
      const T t = tanh(input / p.softcap);
      return 1 - t * t;
    }
  }
  return 1;
}

// a_c but for what a class index adds; `probability` is 0 for class indices.
template <typename T>
__device__ inline T spread_coefficient(const CrossEntropy<T>& p, int64_t c, T probability) {
  const T a = (1 - p.label_smoothing) * probability + p.label_smoothing / static_cast<T>(p.classes);
  return p.weight != nullptr ? a * p.weight[c] : a;
}

// Sums over some classes of a row. The shift is their largest logit; it is finite from the start, so that rescaling
// needs no special case.
template <typename T>
struct SoftmaxPart {
  T shift = kLowest<T>;
  T sum = 0;      // of exp(z - shift)
  T total = 0;    // of a_c
  T product = 0;  // of a_c (z - shift)

  __device__ void raise_shift(T to) {
    if (!(to > shift)) return;
    sum *= fast_exp(shift - to);
    if (total != 0) product -= (to - shift) * total;
    shift = to;
  }
};

template <typename T, bool kPlain>
__device__ inline SoftmaxPart<T> merge(SoftmaxPart<T> low, SoftmaxPart<T> high) {
  const T shift = larger(low.shift, high.shift);
  low.raise_shift(shift);
  high.raise_shift(shift);
  low.sum += high.sum;
  if constexpr (!kPlain) {
    low.total += high.total;
    low.product += high.product;
  }
  return low;
}

// Merges over `lanes` neighbouring lanes, a power of two; all lanes of the warp take part. The result is in each lane.
template <typename T, bool kPlain>
__device__ inline SoftmaxPart<T> merge_lanes(SoftmaxPart<T> part, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    SoftmaxPart<T> other;
    other.shift = from_lane_xor(part.shift, offset);
    other.sum = from_lane_xor(part.sum, offset);
    if constexpr (!kPlain) {
      other.total = from_lane_xor(part.total, offset);
      other.product = from_lane_xor(part.product, offset);
    }
    // The lower lane's comes first in both, or rounding would tell the lanes apart.
    const bool upper = (static_cast<int>(threadIdx.x) & offset) != 0;
    part = upper ? merge<T, kPlain>(other, part) : merge<T, kPlain>(part, other);
  }
  return part;
}

// What the target of a row says. An index that is neither a class nor ignored is never used as one: it makes the loss
// and the gradient of its row NaN, and counts for nothing in the mean.
template <typename T>
struct RowTarget {
  int64_t index = -1;  // class, or -1
  T index_weight = 0;  // (1 - smoothing) weight_y
  T mean_weight = 1;   // what the row adds to the mean's denominator
  bool ignored = false, valid = true;
};

template <typename T>
__device__ inline RowTarget<T> row_target(const CrossEntropy<T>& p, int64_t row) {
  RowTarget<T> target;
  if (p.target == nullptr) return target;
  const int64_t y = p.target[row];
  target.ignored = y == p.ignore_index;
  target.valid = target.ignored || (y >= 0 && y < p.classes);
  const bool counts = target.valid && !target.ignored;
  target.index = counts ? y : -1;
  target.mean_weight = !counts ? T(0) : p.weight != nullptr ? p.weight[y] : T(1);
  target.index_weight = (1 - p.label_smoothing) * target.mean_weight;
  return target;
}

template <typename T, bool kPlain>
__device__ inline T row_loss(const CrossEntropy<T>& p, const RowTarget<T>& target, const SoftmaxPart<T>& part,
                             T target_input) {
  if (target.ignored) return 0;
  if (!target.valid) return not_a_number<T>();
  const T log_sum = log(part.sum), lse = part.shift + log_sum;
  T loss = 0;
  if (target.index >= 0) loss = target.index_weight * (log_sum - (logit<T, kPlain>(p, target_input) - part.shift));
  if constexpr (!kPlain) {
    // Where it is known it is not taken from a sum, which has lost digits. Without classes log_sum is infinite.
    const T total = total_is_unknown(p) ? part.total : p.label_smoothing;
    if (p.classes > 0) loss += total * log_sum - part.product;
  }
  return p.z_loss != 0 ? loss + p.z_loss * lse * lse : loss;
}

// What the gradient of a row is made of: d loss / d input_c = slope_c (e^(z_c - shift) factor - a_c scale), and for the
// target's class also - index_scale slope_c.
template <typename T>
struct RowGradient {
  T shift, log_sum, factor, scale, index_scale;
  bool ignored;
};

template <typename T, bool kPlain>
__device__ inline RowGradient<T> row_gradient(const CrossEntropy<T>& p, int64_t row, const RowTarget<T>& target,
                                              T shift, T sum, T log_sum, T total, T scale) {
  if (p.row_scale != nullptr) scale *= p.row_scale[row];
  if (!target.valid) scale = not_a_number<T>();
  T weight = target.index_weight;
  if constexpr (!kPlain) weight += total_is_unknown(p) ? total : p.label_smoothing;
  const T penalty = 2 * p.z_loss * (shift + log_sum);
  // One class has probability 1, so that all but the penalty cancels; exactly, if it is not computed.
  if (p.classes == 1) return {shift, log_sum, penalty * scale / sum, 0 * scale, 0 * scale, target.ignored};
  return {shift, log_sum, (weight + penalty) * scale / sum, scale, target.index_weight * scale, target.ignored};
}

template <typename T, bool kPlain>
__device__ inline T input_gradient(const CrossEntropy<T>& p, const RowGradient<T>& row, T input, bool is_target,
                                   int64_t c, T probability) {
  T gradient = fast_exp(logit<T, kPlain>(p, input) - row.shift) * row.factor;
  if constexpr (!kPlain) {
    if (p.target == nullptr || p.label_smoothing != 0) gradient -= spread_coefficient(p, c, probability) * row.scale;
  }
  if (is_target) gradient -= row.index_scale;
  gradient *= logit_slope<T, kPlain>(p, input);
  return row.ignored ? T(0) : gradient;
}

// The factor that the gradients of all rows share. Every lane of a warp takes part.
template <typename S>
__device__ inline Compute<S> gradient_scale(const CrossEntropy<Compute<S>>& p, const CrossEntropyRun<Compute<S>>& run) {
  Compute<S> scale = p.scale;
  if (run.upstream != nullptr) scale *= *run.upstream;
  if (run.denominators != nullptr) scale /= warp_sum(run.denominators[thread_in_block() % kWarp]);
  return scale;
}

// Sums of the block's rows, from what each thread has of them. `scratch` has kWarp values of shared memory.
template <typename T>
__device__ inline void write_parts(const CrossEntropyRun<T>& run, T loss, T mean_weight, T* scratch) {
  if (run.loss_parts == nullptr) return;
  loss = block_sum(loss, scratch);
  mean_weight = block_sum(mean_weight, scratch);
  if (thread_in_block() != 0) return;
  run.loss_parts[blockIdx.x] = loss;
  run.weight_parts[blockIdx.x] = mean_weight;
}

}  // namespace charlm::cuda
