// One row of softmax cross-entropy: what a thread gathers while it walks over classes, how the parts of several threads
// merge, and what follows from the whole. The formula is in kernels/cross_entropy.h.
#pragma once

#include "kernels/cuda/cross_entropy_run.cuh"
#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/softcap.cuh"
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
  T shift, sum;  // sum of exponential(z)
  T total;       // of a_c
  T product;     // of a_c (z - shift)
  Exponential<T> exponential;

  __device__ explicit SoftmaxPart(T shift = kLowest<T>, T sum = 0, T total = 0, T product = 0)
      : shift(shift), sum(sum), total(total), product(product), exponential(shift) {}

  __device__ void raise_shift(T to) {
    if (!(to > shift)) return;
    const Exponential<T> raised(to);
    sum *= raised.from(exponential);
    product = product_under(to);
    shift = to;
    exponential = raised;
  }

  __device__ T product_under(T larger_shift) const {
    return total != 0 ? product - (larger_shift - shift) * total : product;
  }

  // Of e^(z - shift): 1 of the largest, exactly, so that the loss of a sure prediction is 0, and what the others add.
  __device__ T exact_sum() const {
    if constexpr (sizeof(T) == sizeof(double)) return sum;  // there the largest adds 1 as it is
    return 1 + (sum - exponential(shift)) * exponential.correction(shift);
  }
};

// Of a and b as of b and a, to the bit, so that all lanes that merge the same parts have the same.
template <typename T, bool kPlain>
__device__ inline SoftmaxPart<T> merge(const SoftmaxPart<T>& a, const SoftmaxPart<T>& b) {
  SoftmaxPart<T> both(larger(a.shift, b.shift));
  both.sum = rounded_product(a.sum, both.exponential.from(a.exponential)) +
             rounded_product(b.sum, both.exponential.from(b.exponential));
  if constexpr (!kPlain) {
    both.total = a.total + b.total;
    both.product = a.product_under(both.shift) + b.product_under(both.shift);
  }
  return both;
}

// Merges over `lanes` neighbouring lanes, a power of two; all lanes of the warp take part. The result is in each lane.
template <typename T, bool kPlain>
__device__ inline SoftmaxPart<T> merge_lanes(SoftmaxPart<T> part, int lanes) {
#pragma unroll 1
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    SoftmaxPart<T> other(from_lane_xor(part.shift, offset), from_lane_xor(part.sum, offset));
    if constexpr (!kPlain) {
      other.total = from_lane_xor(part.total, offset);
      other.product = from_lane_xor(part.product, offset);
    }
    part = merge<T, kPlain>(part, other);
  }
  return part;
}

// What the target of a row says. An index that is neither a class nor ignored is never used as one: it makes the loss
// and the gradient of its row NaN, and counts for nothing in the mean.
template <typename T>
struct RowTarget {
  int index = -1;      // class, or -1
  T index_weight = 0;  // (1 - smoothing) weight_y
  T class_weight = 1;  // weight_y, or 0 where the row does not count; 1 of probabilities
  bool ignored = false, valid = true;
};

// `y` is p.target[row], where there is one: read early, and looked at when it is needed.
template <typename T>
__device__ inline RowTarget<T> row_target(const CrossEntropy<T>& p, int64_t y) {
  RowTarget<T> target;
  if (p.target == nullptr) return target;
  target.ignored = y == p.ignore_index;
  const bool is_class = static_cast<uint64_t>(y) < static_cast<uint64_t>(p.classes);
  target.valid = target.ignored || is_class;
  const bool counts = is_class && !target.ignored;
  target.index = counts ? static_cast<int>(y) : -1;
  target.class_weight = counts ? T(1) : T(0);
  if (p.weight != nullptr && counts) target.class_weight = p.weight[target.index];
  target.index_weight = (1 - p.label_smoothing) * target.class_weight;
  return target;
}

// What callers multiply loss and gradient of a row by, if the op has such weights; 1 where it does not count, as its
// weight may be anything then. Read where it is needed: most calls have none, and no register to spare for it.
template <typename T>
__device__ inline T token_weight(const CrossEntropy<T>& p, int64_t row, const RowTarget<T>& target) {
  return p.token_weights != nullptr && !target.ignored && target.valid ? p.token_weights[row] : T(1);
}

// What a row adds to the mean's denominator.
template <typename T>
__device__ inline T mean_weight(const CrossEntropy<T>& p, int64_t row, const RowTarget<T>& target) {
  return token_weight(p, row, target) * target.class_weight;
}

template <typename T, bool kPlain>
__device__ inline T row_loss(const CrossEntropy<T>& p, const RowTarget<T>& target, const SoftmaxPart<T>& part,
                             T log_sum, T target_input) {
  if (target.ignored) return 0;
  if (!target.valid) return not_a_number<T>();
  const T lse = part.shift + log_sum;
  T loss = 0;
  if (target.index >= 0) loss = target.index_weight * (log_sum - (logit<T, kPlain>(p, target_input) - part.shift));
  if constexpr (!kPlain) {
    // Where it is known it is not taken from a sum, which has lost digits. Without classes log_sum is infinite.
    const T total = total_is_unknown(p) ? part.total : p.label_smoothing;
    if (p.classes > 0) loss += total * log_sum - part.product;
  }
  return p.z_loss != 0 ? loss + p.z_loss * lse * lse : loss;
}

// What the gradient of a row is made of: d loss / d input_c = slope_c (exponential(z_c) factor - a_c scale), and for
// the target's class also - index_scale slope_c.
template <typename T>
struct RowGradient {
  T shift = 0, log_sum = 0, factor = 0, scale = 0, index_scale = 0;
  bool ignored = false;
  Exponential<T> exponential{T(0)};
};

// `sum` is that of e^(z - shift).
template <typename T, bool kPlain>
__device__ inline RowGradient<T> row_gradient(const CrossEntropy<T>& p, int64_t row, const RowTarget<T>& target,
                                              T shift, T sum, T log_sum, T total, T scale) {
  if (p.row_scale != nullptr) scale *= p.row_scale[row];
  if (!target.valid) scale = not_a_number<T>();
  T weight = target.index_weight;
  if constexpr (!kPlain) weight += total_is_unknown(p) ? total : p.label_smoothing;
  const T penalty = 2 * p.z_loss * (shift + log_sum);
  RowGradient<T> row_values;
  row_values.shift = shift;
  row_values.log_sum = log_sum;
  row_values.ignored = target.ignored;
  row_values.exponential = Exponential<T>(shift);
  // One class has probability 1, so that all but the penalty cancels; exactly, if it is not computed.
  const T counted = p.classes == 1 ? penalty : weight + penalty;
  row_values.factor = counted * scale / sum * row_values.exponential.correction(shift);
  row_values.scale = p.classes == 1 ? 0 * scale : scale;
  row_values.index_scale = p.classes == 1 ? 0 * scale : target.index_weight * scale;
  return row_values;
}

// Of a row that is not ignored.
template <typename T, bool kPlain>
__device__ inline T input_gradient(const CrossEntropy<T>& p, const RowGradient<T>& row, T input, bool is_target,
                                   int64_t c, T probability) {
  T gradient = row.exponential(logit<T, kPlain>(p, input)) * row.factor;
  if constexpr (!kPlain) {
    if (p.target == nullptr || p.label_smoothing != 0) gradient -= spread_coefficient(p, c, probability) * row.scale;
  }
  if (is_target) gradient -= row.index_scale;
  return gradient * logit_slope<T, kPlain>(p, input);
}

// The factor that the gradients of all rows share.
template <typename S>
__device__ inline Compute<S> gradient_scale(const CrossEntropy<Compute<S>>& p, const CrossEntropyRun<Compute<S>>& run) {
  Compute<S> scale = p.scale;
  if (run.upstream != nullptr) scale *= *run.upstream;
  if (run.denominator != nullptr) scale /= *run.denominator;
  return scale;
}

// Sums of the block's rows, from what each thread has of them. `scratch` has 2 * kWarp values of shared memory.
template <typename T>
__device__ inline void write_parts(const CrossEntropyRun<T>& run, T loss, T mean_weight, T* scratch) {
  if (run.loss_parts == nullptr) return;
  T sums[] = {loss, mean_weight};
  block_sums(sums, scratch);
  if (thread_in_block() != 0) return;
  run.loss_parts[blockIdx.x] = sums[0];
  run.weight_parts[blockIdx.x] = sums[1];
}

}  // namespace charlm::cuda
