// One row of log_probs: what a thread gathers while it walks over classes, how the parts of several threads merge, and
// what the gradient of a class is. The formula is in kernels/log_probs.h.
#pragma once

#include "kernels/cuda/math.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/softcap.cuh"
#include "kernels/cuda/storage.cuh"
#include "kernels/log_probs.h"

namespace charlm::cuda {

// Differences of logits z are in units of kUnit, so that a power of them is one instruction in float32.
template <typename T>
inline constexpr T kUnit = T(0.693147180559945309);  // log(2)
template <>
inline constexpr double kUnit<double> = 1;
__device__ inline float power(float x) { return approximate_exp2(x); }
__device__ inline double power(double x) { return exp(x); }

// The units of z in one of input.
template <typename T>
__device__ inline T units_of(const LogProbs<T>& p) {
  return 1 / p.temperature * (1 / kUnit<T>);
}

// A difference to multiply its power by: so far below 0 that the power is 0, but finite. 0 times it is 0, as the limit
// of p log p is.
template <typename T>
__device__ inline T factor_of_power(T difference) {
  return larger(difference, T(-10000));
}

// The class of an id. What is none is never used as an index.
inline constexpr int kIgnored = -1, kOutside = -2;
template <typename T>
__device__ inline int class_of(const LogProbs<T>& p, int64_t id) {
  if (id == p.ignore_index) return kIgnored;
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(p.classes) ? static_cast<int>(id) : kOutside;
}

// Of some classes of a row, and of some of its ids.
template <typename T>
struct LogProbsPart {
  T shift;      // the largest input after the cap, but finite: rescaling needs no special case, an infinite sum stays
  T sum;        // of e^(z - shift)
  T product;    // of e^(z - shift) (z - shift), in units
  T largest;    // input that is a number
  int above;    // inputs that are not at most that of the first id
  bool counts;  // whether an id is not ignored

  __device__ static LogProbsPart of_nothing() { return {kLowest<T>, 0, 0, -static_cast<T>(INFINITY), 0, false}; }

  __device__ void raise_shift(T to, T units) {
    if (to > shift) *this = under(to, units);
  }
  __device__ LogProbsPart under(T larger_shift, T units) const {
    const T change = (shift - larger_shift) * units, factor = power(change);
    LogProbsPart raised = *this;
    raised.shift = larger_shift;
    raised.sum = rounded_product(sum, factor);
    raised.product = factor == 0 ? 0 : rounded_product(product + change * sum, factor);
    return raised;
  }
};

template <typename T>
__device__ inline LogProbsPart<T> from_lane_xor(const LogProbsPart<T>& part, int offset) {
  return {from_lane_xor(part.shift, offset),   from_lane_xor(part.sum, offset),   from_lane_xor(part.product, offset),
          from_lane_xor(part.largest, offset), from_lane_xor(part.above, offset), from_lane_xor(part.counts, offset)};
}

template <typename T>
__device__ inline LogProbsPart<T> merge(const LogProbsPart<T>& a, const LogProbsPart<T>& b, T units) {
  const T shift = larger(a.shift, b.shift);
  const LogProbsPart<T> left = a.under(shift, units), right = b.under(shift, units);
  return {shift,
          left.sum + right.sum,
          left.product + right.product,
          larger(a.largest, b.largest),
          a.above + b.above,
          a.counts || b.counts};
}

// Adds a piece of a row. `place` is the first class of the piece that the largest input is in, if a class has more than
// -infinity; of several such pieces the first.
template <typename S, bool kPlain, typename Piece>
__device__ inline void add_piece(const LogProbs<Compute<S>>& p, const Piece& piece, Compute<S> first_input,
                                 Compute<S> units, LogProbsPart<Compute<S>>* part, int* place) {
  using T = Compute<S>;
  const T found = piece.largest();
  // What precedes the first vector comes after the last.
  if (found > part->largest || (found == part->largest && piece.first_class() < *place)) {
    part->largest = found;
    *place = piece.first_class();
  }
  part->raise_shift(smaller(logit<T, kPlain>(p, found), -kLowest<T>), units);
  piece.for_each_part([&](T* inputs, const auto& classes) {
#pragma unroll
    for (int i = 0; i < classes.kCount; ++i) {
      // A cap would lift the -infinity of what is not there.
      const T y = classes.contains(i) ? logit<T, kPlain>(p, inputs[i]) : inputs[i];
      const T difference = (y - part->shift) * units, e = power(difference);
      part->sum += e;
      part->product += e * factor_of_power(difference);
      part->above += !(inputs[i] <= first_input);
    }
  });
}

// Of the ids of a row, or of some of them.
template <typename T>
struct IdsPart {
  T upstream;  // sum of their gradients
  bool counts, is_outside;
};

template <typename T>
__device__ inline IdsPart<T> from_lane_xor(const IdsPart<T>& part, int offset) {
  return {from_lane_xor(part.upstream, offset), from_lane_xor(part.counts, offset),
          from_lane_xor(part.is_outside, offset)};
}

// d / d input_c = slope_c (e^(z_c - shift) (constant + linear (z_c - shift)) + of_class_c / temperature), where slope_c
// is that of the cap. constant and linear have the factor of 1 / temperature too: all but of_class cancels exactly
// where a row has one class.
template <typename T>
struct LogProbsGradient {
  T shift, units, inverse_temperature, constant, linear;

  // `of_ids` is the sum of the upstream gradients of the row's ids.
  __device__ LogProbsGradient(const LogProbs<T>& p, int64_t row, T of_ids)
      : shift(p.shift[row]), units(units_of(p)), inverse_temperature(1 / p.temperature) {
    const T log_sum = p.log_sum[row], factor = exp(-log_sum) * inverse_temperature;
    constant = -of_ids;
    linear = 0;
    if (p.logsumexp_gradient != nullptr) constant += p.logsumexp_gradient[row];
    const T of_entropy = p.entropy_gradient != nullptr ? p.entropy_gradient[row] : 0;
    if (of_entropy != 0) {
      constant += of_entropy * (log_sum - p.kept_entropy[row]);
      linear = -of_entropy * kUnit<T> * factor;
    }
    constant *= factor;
  }

  // `of_class` is the sum of the upstream gradients of those ids that are this class.
  template <bool kPlain>
  __device__ T of_input(const LogProbs<T>& p, T input, T of_class) const {
    const T difference = (logit<T, kPlain>(p, input) - shift) * units;
    const T gradient =
        power(difference) * (constant + linear * factor_of_power(difference)) + of_class * inverse_temperature;
    return gradient * logit_slope<T, kPlain>(p, input);
  }
};

}  // namespace charlm::cuda
