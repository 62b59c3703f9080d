#include "kernels/log_probs.h"

#include <type_traits>

#include "kernels/cpu/class_rows.h"
#include "kernels/cpu/softcap.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

// A row is walked over a piece of so many vectors at a time, so that its second pass finds it in the first-level cache.
// Sums of a piece are in T, and those of all pieces in double: one sum in float would lose a digit for every ten values
// that it is larger than what is added.
template <typename T>
inline constexpr int64_t kPiece = 32 * kWidth<T>;

// So far below the largest z that e^(z - shift) is 0, and finite: 0 times it is 0, as the limit of p log p is.
constexpr int kFarBelow = -10000;

// The softcapped inputs y of a row, and z - shift of them, which is (y - largest y) / temperature.
template <typename T, bool kCapped>
struct Logits {
  Softcap<T, kCapped> softcap;
  T inverse_temperature;

  explicit Logits(const LogProbs<T>& p)
      : softcap{p.softcap, kCapped ? 1 / p.softcap : 0}, inverse_temperature(1 / p.temperature) {}
  CHARLM_INLINE Vec<T> below(Vec<T> input, T largest) const {
    const Vec<T> z = (softcap(input) - largest) * inverse_temperature;
    return z < (T)kFarBelow ? broadcast((T)kFarBelow) : z;  // a NaN stays
  }
  // d z / d input
  CHARLM_INLINE Vec<T> slope(Vec<T> input) const {
    if constexpr (kCapped) return softcap.derivative(input) * inverse_temperature;
    return broadcast(inverse_temperature);
  }
};

// Calls body(first, count) for each piece.
template <typename T, typename Body>
CHARLM_INLINE void for_each_piece_of(int64_t classes, const Body& body) {
  for (int64_t c = 0; c < classes; c += kPiece<T>) body(c, classes - c < kPiece<T> ? classes - c : kPiece<T>);
}

// The largest number of a piece, and its place, into `sums`; and how many inputs are above that of the first id.
template <typename T, typename S>
CHARLM_INLINE void compare_piece(const S* piece, int64_t count, int64_t first_class, LogProbsRow<T>* sums) {
  Vec<T> largest = broadcast(-(T)INFINITY);
  IntVec<T> not_above = {};  // minus one for each
  int64_t above = 0;
  for_each_vector<T>(count, [&](int64_t i, int lanes) CHARLM_LAMBDA_INLINE {
    const Vec<T> x = load_as(piece + i, lanes);
    if (lanes == kWidth<T>) {
      largest = maximum<T>(x, largest);  // which ignores a NaN
      not_above += x <= sums->first_input;
      return;
    }
    largest = maximum<T>(lanes_or<T>(x, lanes, -(T)INFINITY), largest);
    for (int lane = 0; lane < lanes; ++lane) above += !(x[lane] <= sums->first_input);
  });
  const int64_t whole = count / kWidth<T> * kWidth<T>;
  sums->above += above + whole + (int64_t)sum_lanes<T>(__builtin_convertvector(not_above, Vec<T>));
  const T found = maximum_lane<T>(largest);
  if (sums->argmax >= 0 && !(found > sums->largest)) return;
  for (int64_t i = 0; i < count; ++i) {
    if (to_compute(piece[i]) != found) continue;  // nowhere, where all are NaN
    sums->argmax = first_class + i;
    sums->largest = found;
    return;
  }
}

// Brings the sums under a new shift, if the largest input has become one.
template <typename T, bool kCapped>
CHARLM_INLINE void raise_shift(const Logits<T, kCapped>& logits, bool is_first, LogProbsRow<T>* sums) {
  const T shift = logits.softcap(sums->largest);
  if (is_first) {
    sums->shift = shift;
  } else if (shift > sums->shift) {
    if (sums->shift > -(T)INFINITY) {  // until then sums are of nothing
      const double change = ((double)sums->shift - (double)shift) * (double)logits.inverse_temperature;
      const double factor = ::exp(change);
      sums->product = factor == 0 ? 0 : factor * (sums->product + change * sums->sum);
      sums->sum *= factor;
    }
    sums->shift = shift;
  }
}

template <typename T, typename S, bool kCapped>
CHARLM_INLINE void add_row(const S* row, int64_t classes, int64_t first_class, const Logits<T, kCapped>& logits,
                           LogProbsRow<T>* sums) {
  for_each_piece_of<T>(classes, [&](int64_t first, int64_t count) CHARLM_LAMBDA_INLINE {
    const S* const piece = row + first;
    const bool is_first = sums->argmax < 0;
    compare_piece<T, S>(piece, count, first_class + first, sums);
    if (sums->argmax < 0) {  // nothing but NaN, which the sums are now too
      sums->sum = sums->product = NAN;
      return;
    }
    raise_shift(logits, is_first, sums);
    const T shift = sums->shift > -(T)INFINITY && sums->shift < (T)INFINITY ? sums->shift : 0;
    Vec<T> sum = {}, product = {};
    for_each_vector<T>(count, [&](int64_t i, int lanes) CHARLM_LAMBDA_INLINE {
      const Vec<T> z = logits.below(load_as(piece + i, lanes), shift), e = exp(z), term = e * z;
      sum = sum + (lanes == kWidth<T> ? e : keep_lanes<T>(e, lanes));
      product = product + (lanes == kWidth<T> ? term : keep_lanes<T>(term, lanes));
    });
    sums->sum += sum_lanes<T>(sum);
    sums->product += sum_lanes<T>(product);
  });
}

// body(row of the problem, its inputs) for rows [first, last), whose logits are stored as S. Inputs that are not rows
// of S are copied to scratch, a tile at a time; with_gradient writes back what body leaves of the gradient's rows
// there.
template <typename S, typename T, typename Body>
CHARLM_INLINE void for_each_row(const LogProbs<T>& p, int64_t first, int64_t last, T* scratch, const Body& body) {
  const int64_t tile_rows = cross_entropy_tile_rows(p.classes);
  for (int64_t row = first; row < last; row += tile_rows) {
    const int64_t count = last - row < tile_rows ? last - row : tile_rows;
    Rows<S> input, gradient;
    if constexpr (std::is_same_v<S, T>) {
      input = open_rows<T>(p.input, row, p.classes, scratch);
      gradient = open_rows<T>(p.input_gradient, row, p.classes, scratch + tile_rows * p.classes);
      read_rows(input, p.input, row, count, p.classes);
    } else {
      input = open_rows<S>(p.input, row, p.classes, nullptr);
      gradient = open_rows<S>(p.input_gradient, row, p.classes, nullptr);
    }
    for (int64_t r = 0; r < count; ++r)
      body(row + r, input.row(r), gradient.data == nullptr ? nullptr : gradient.row(r));
    if constexpr (std::is_same_v<S, T>) {
      if (gradient.data != nullptr) write_rows(gradient, p.input_gradient, row, count, p.classes);
    }
  }
}

template <typename T, typename S, bool kCapped>
void add_as(const LogProbs<T>& p, int64_t first_class, int64_t first, int64_t last, LogProbsRow<T>* sums, T* scratch) {
  const Logits<T, kCapped> logits(p);
  for_each_row<S>(p, first, last, scratch, [&](int64_t n, const S* row, S*) CHARLM_LAMBDA_INLINE {
    add_row<T, S, kCapped>(row, p.classes, first_class, logits, &sums[n]);
    for (int64_t k = n * p.ids_per_row; k < (n + 1) * p.ids_per_row; ++k) {
      const int64_t c = p.ids[k] - first_class;
      if (p.ids[k] != p.ignore_index && c >= 0 && c < p.classes) p.log_probs[k] = to_compute(row[c]);
    }
  });
}

template <typename T, bool kCapped>
void finish_as(const LogProbs<T>& p, int64_t first, int64_t last, const LogProbsRow<T>* sums) {
  const Logits<T, kCapped> logits(p);
  for (int64_t n = first; n < last; ++n) {
    const LogProbsRow<T>& row = sums[n];
    const bool counts = p.counts(n);
    const int64_t* const ids = p.ids + n * p.ids_per_row;
    // An infinite logit makes the sum infinite, and so logsumexp, and what depends on differences from it NaN.
    const bool is_infinite = row.sum == INFINITY;
    const double log_sum = is_infinite ? NAN : ::log(row.sum);
    p.shift[n] = row.shift;
    p.log_sum[n] = (T)log_sum;
    const bool has_classes = row.argmax >= 0 || row.sum != 0;  // a sum is NaN where no class is a number
    p.entropy[n] = p.kept_entropy[n] = counts && has_classes ? (T)(log_sum - row.product / row.sum) : 0;
    const double logsumexp = (double)row.shift * (double)logits.inverse_temperature + log_sum;
    p.logsumexp[n] = !counts ? 0 : is_infinite ? (T)INFINITY : (T)logsumexp;
    p.argmax[n] = !counts || !has_classes ? -1 : row.argmax < 0 ? 0 : row.argmax;
    p.rank[n] = p.ids_per_row > 0 && ids[0] != p.ignore_index ? row.above : -1;
    for (int64_t k = 0; k < p.ids_per_row; ++k) {
      T& value = p.log_probs[n * p.ids_per_row + k];
      value =
          ids[k] == p.ignore_index
              ? 0
              : (T)(((double)logits.softcap(value) - (double)row.shift) * (double)logits.inverse_temperature - log_sum);
    }
  }
}

template <typename T, typename S, bool kCapped>
void gradient_as(const LogProbs<T>& p, int64_t first_class, int64_t first, int64_t last, T* scratch) {
  const Logits<T, kCapped> logits(p);
  const int64_t ids_per_row = p.ids_per_row;
  for_each_row<S>(p, first, last, scratch, [&](int64_t n, const S* row, S* out) CHARLM_LAMBDA_INLINE {
    if (!p.counts(n)) {
      for_each_vector<T>(p.classes, [&](int64_t c, int lanes) { store_as(out + c, Vec<T>{}, lanes); });
      return;
    }
    const int64_t* const ids = p.ids + n * ids_per_row;
    const auto upstream = [&](int64_t k) {
      return p.log_probs_gradient == nullptr || ids[k] == p.ignore_index ? 0
                                                                         : p.log_probs_gradient[n * ids_per_row + k];
    };
    T of_ids = 0;
    for (int64_t k = 0; k < ids_per_row; ++k) of_ids += upstream(k);
    const T of_entropy = p.entropy_gradient != nullptr ? p.entropy_gradient[n] : 0;
    const T of_lse = p.logsumexp_gradient != nullptr ? p.logsumexp_gradient[n] : 0;
    // softmax_c times constant + linear * (z_c - shift)
    const T inverse_sum = exp(broadcast(-p.log_sum[n]))[0], shift = p.shift[n];
    T constant = (of_lse - of_ids) * inverse_sum, linear = 0;
    if (of_entropy != 0) {
      constant += of_entropy * (p.log_sum[n] - p.kept_entropy[n]) * inverse_sum;
      linear = -of_entropy * inverse_sum;
    }
    for_each_piece_of<T>(p.classes, [&](int64_t begin, int64_t count) CHARLM_LAMBDA_INLINE {
      alignas(64) T values[kPiece<T>];
      const S* const piece = row + begin;
      for_each_vector<T>(count, [&](int64_t i, int lanes) CHARLM_LAMBDA_INLINE {
        const Vec<T> x = load_as(piece + i, lanes), z = logits.below(x, shift);
        store(values + i, exp(z) * (constant + linear * z) * logits.slope(x));
      });
      for (int64_t k = 0; k < ids_per_row; ++k) {
        const int64_t c = ids[k] - first_class - begin;
        if (c < 0 || c >= count) continue;
        values[c] += upstream(k) * logits.slope(broadcast(to_compute(piece[c])))[0];
      }
      for_each_vector<T>(count, [&](int64_t i, int lanes)
                                    CHARLM_LAMBDA_INLINE { store_as(out + begin + i, load(values + i), lanes); });
    });
  });
}

// Calls function.template operator()<S, kCapped>() with the type of logits, and of the gradient where there is one,
// that rows are read and written in as they are; T where they are copied.
template <typename T, typename Function>
void with_types(const LogProbs<T>& p, const Function& function) {
  const auto are_rows_of = [&]<typename S>() {
    return is_direct<S>(p.input) && (p.input_gradient.data == nullptr || is_direct<S>(p.input_gradient));
  };
  const auto with_cap = [&]<typename S>() {
    p.softcap != 0 ? function.template operator()<S, true>() : function.template operator()<S, false>();
  };
  if constexpr (sizeof(T) == 4) {
    if (are_rows_of.template operator()<BFloat16>()) return with_cap.template operator()<BFloat16>();
    if (are_rows_of.template operator()<Float16>()) return with_cap.template operator()<Float16>();
  }
  with_cap.template operator()<T>();
}

template <typename T>
void add(const LogProbs<T>& p, int64_t first_class, int64_t first, int64_t last, LogProbsRow<T>* sums, T* scratch) {
  with_types(p, [&]<typename S, bool kCapped>() { add_as<T, S, kCapped>(p, first_class, first, last, sums, scratch); });
}

template <typename T>
void finish(const LogProbs<T>& p, int64_t first, int64_t last, const LogProbsRow<T>* sums) {
  p.softcap != 0 ? finish_as<T, true>(p, first, last, sums) : finish_as<T, false>(p, first, last, sums);
}

template <typename T>
void gradient(const LogProbs<T>& p, int64_t first_class, int64_t first, int64_t last, T* scratch) {
  with_types(p, [&]<typename S, bool kCapped>() { gradient_as<T, S, kCapped>(p, first_class, first, last, scratch); });
}

}  // namespace

template <>
LogProbsKernels<float> kernels() {
  return {add<float>, finish<float>, gradient<float>};
}
template <>
LogProbsKernels<double> kernels() {
  return {add<double>, finish<double>, gradient<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
