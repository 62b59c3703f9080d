// Softmax cross-entropy of a tile of rows, whatever their layout and options.
#pragma once

#include <type_traits>

#include "kernels/cpu/class_rows.h"
#include "kernels/cpu/softcap.h"
#include "kernels/cross_entropy.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Below this magnitude of all logits of a tile, exp needs no shift: neither e^z, nor sums of them, nor their ratios
// leave the range of float. It saves the search for each row's maximum.
constexpr float kUnshiftedLogit = 30.0f;

template <typename T, typename S>
bool all_below(const Rows<S>& logits, int64_t count, int64_t classes, T bound) {
  Vec<T> largest = {};  // NaNs pass: they make a row's sum NaN whatever its shift
  for (int64_t r = 0; r < count; ++r) {
    const S* row = logits.row(r);
    for_each_vector<T>(classes,
                       [&](int64_t c, int lanes) { largest = maximum<T>(absolute(load_as(row + c, lanes)), largest); });
  }
  return maximum_lane<T>(largest) < bound;
}

template <typename T, typename S>
T row_maximum(const S* row, int64_t classes) {
  Vec<T> largest = broadcast<T>(-(T)INFINITY);
  for_each_vector<T>(classes, [&](int64_t c, int lanes) {
    const Vec<T> z = load_as(row + c, lanes);
    largest = maximum<T>(largest, lanes == kWidth<T> ? z : lanes_or<T>(z, lanes, -(T)INFINITY));
  });
  return maximum_lane<T>(largest);
}

// Long rows are summed in pieces of so many vectors, whose sums are added in double: one sum in float would lose a
// digit for every ten values that it is larger than what is added, and where all values are equal not by chance, but in
// one direction.
constexpr int64_t kPieceVectors = 32;

// The sum of body(first, count), a sum over so many classes, over the pieces of a row. Most rows are one.
template <typename T, typename Body>
CHARLM_INLINE T sum_of_pieces(int64_t classes, const Body& body) {
  constexpr int64_t kPiece = kPieceVectors * kWidth<T>;
  if (classes <= kPiece) return body(0, classes);
  double total = 0;
  for (int64_t c = 0; c < classes; c += kPiece) total += body(c, classes - c < kPiece ? classes - c : kPiece);
  return (T)total;
}

// sum_c exp(z_c - shift); each exp(z_c - shift) is kept in `exponentials` where that is not null. Meanwhile the row of
// the next tile is fetched, `ahead` values from this one: the processor would not look beyond the end of this tile.
template <typename T, typename S, bool kCapped>
CHARLM_INLINE T sum_of_exponentials(const S* row, int64_t classes, Softcap<T, kCapped> softcap, T shift,
                                    T* exponentials, int64_t ahead) {
  return sum_of_pieces<T>(classes, [&](int64_t first, int64_t count) CHARLM_LAMBDA_INLINE {
    Vec<T> sum = {};
    for_each_vector<T>(count, [&](int64_t i, int lanes) {
      const int64_t c = first + i;
      __builtin_prefetch(row + ahead + c);
      const Vec<T> e = exp(softcap(load_as(row + c, lanes)) - shift);
      if (exponentials != nullptr) store_lanes<T>(exponentials + c, e, lanes);
      sum = sum + (lanes == kWidth<T> ? e : keep_lanes<T>(e, lanes));
    });
    return sum_lanes<T>(sum);
  });
}

// The part of a_c that a whole row shares the formula of: class probabilities, or the smoothing of a class index.
template <typename T>
struct TargetRow {
  const T* probability;  // null: class index
  const T* weight;       // null: 1
  T keep, spread;        // 1 - smoothing, smoothing / C
  T smoothing;

  CHARLM_INLINE Vec<T> operator()(int64_t c, int lanes) const {
    Vec<T> a = broadcast<T>(spread);
    if (probability != nullptr) a = a + load_lanes<T>(probability + c, lanes, 0) * keep;
    if (weight != nullptr) a = a * load_lanes<T>(weight + c, lanes, 0);
    return lanes == kWidth<T> ? a : keep_lanes<T>(a, lanes);
  }
  bool is_zero() const { return probability == nullptr && spread == 0; }
  bool is_constant() const { return probability == nullptr && weight == nullptr; }
};

// sum_c a_c and sum_c a_c (z_c - shift)
template <typename T, typename S, bool kCapped>
void target_sums(const S* row, int64_t classes, Softcap<T, kCapped> softcap, T shift, const TargetRow<T>& a, T* total,
                 T* product) {
  double sum_of_all = 0;
  *product = sum_of_pieces<T>(classes, [&](int64_t first, int64_t count) CHARLM_LAMBDA_INLINE {
    Vec<T> totals = {}, products = {};
    for_each_vector<T>(count, [&](int64_t i, int lanes) {
      const Vec<T> z = softcap(load_as(row + first + i, lanes)) - shift, coefficient = a(first + i, lanes);
      totals = totals + coefficient;
      products = products + coefficient * (lanes == kWidth<T> ? z : keep_lanes<T>(z, lanes));
    });
    sum_of_all += sum_lanes<T>(totals);
    return sum_lanes<T>(products);
  });
  // The spread alone is the smoothing, without the digits that a sum would lose.
  *total = a.is_constant() ? a.smoothing : (T)sum_of_all;
}

// What forward keeps of a row beside its loss, where it is asked to.
template <typename T>
CHARLM_INLINE void write_by_products(const CrossEntropy<T>& p, int64_t n, T shift, T log_sum,
                                     T target_log_probability) {
  if (p.shift != nullptr) p.shift[n] = shift;
  if (p.log_sum != nullptr) p.log_sum[n] = log_sum;
  if (p.target_log_probability != nullptr) p.target_log_probability[n] = target_log_probability;
}

// What the loss of a row that counts is multiplied by.
template <typename T>
CHARLM_INLINE T token_weight(const CrossEntropy<T>& p, int64_t n) {
  return p.token_weights != nullptr ? p.token_weights[n] : (T)1;
}

// What the gradients of a row that counts are multiplied by.
template <typename T>
CHARLM_INLINE T gradient_scale(const CrossEntropy<T>& p, int64_t n) {
  const T scale = p.row_scale != nullptr ? p.scale * p.row_scale[n] : p.scale;
  return scale * token_weight(p, n);
}

// A tile of up to kRows rows, whose logits and gradient are stored as S. Results are computed a vector of rows at a
// time, so the arrays hold harmless values for rows that are not there. The gradient may be written over the logits.
template <typename T, typename S, bool kCapped>
struct Tile {
  static constexpr int kRows = (int)kCrossEntropyMaxTileRows;
  const CrossEntropy<T>& p;
  const int64_t first, count, classes = p.classes;
  const Softcap<T, kCapped> softcap{p.softcap, kCapped ? 1 / p.softcap : 0};
  const T keep = 1 - p.label_smoothing, spread = p.label_smoothing / (T)p.classes;
  Rows<S> logits, gradient;
  Rows<T> exponentials, probabilities, probabilities_gradient;
  bool unshifted = false;
  alignas(64) T shift[kRows] = {}, sum[kRows], log_sum[kRows] = {}, loss[kRows], target_log_probability[kRows];
  // The target's logit and coefficient (1 - smoothing) weight_y; the other coefficients' sum, and sum a_c (z_c -
  // shift).
  alignas(64) T target_input[kRows] = {}, index_weight[kRows] = {}, total[kRows] = {}, product[kRows] = {};

  bool is_ignored(int64_t r) const { return p.target != nullptr && p.target[first + r] == p.ignore_index; }
  TargetRow<T> target_row(int64_t r) const {
    return {p.target == nullptr ? probabilities.row(r) : nullptr, p.weight, keep, spread, p.label_smoothing};
  }
  // Forward leaves each e^(z - shift) to be scaled: where the gradient goes, if that has room for it. A cap's
  // derivative needs the logits again.
  bool keeps_exponentials() const { return !kCapped && !p.lse_is_known && gradient.data != nullptr; }

  void open(T* scratch) {
    const int64_t block = cross_entropy_tile_rows(classes) * classes;
    if constexpr (std::is_same_v<S, T>) {
      logits = open_rows<T>(p.input, first, classes, scratch);
      gradient = open_rows<T>(p.input_gradient, first, classes, scratch + block);
      exponentials = gradient;
    } else {
      logits = open_rows<S>(p.input, first, classes, nullptr);
      gradient = open_rows<S>(p.input_gradient, first, classes, nullptr);
      exponentials = {scratch, classes};
    }
    probabilities = open_rows<T>(p.probabilities, first, classes, scratch + 2 * block);
    probabilities_gradient = open_rows<T>(p.probabilities_gradient, first, classes, scratch + 3 * block);
    if constexpr (std::is_same_v<S, T>) read_rows(logits, p.input, first, count, classes);
    if (p.probabilities.data != nullptr) read_rows(probabilities, p.probabilities, first, count, classes);
  }

  void close() const {
    if constexpr (std::is_same_v<S, T>) {
      if (gradient.data != nullptr) write_rows(gradient, p.input_gradient, first, count, classes);
    }
    if (probabilities_gradient.data != nullptr) {
      write_rows(probabilities_gradient, p.probabilities_gradient, first, count, classes);
    }
  }

  void read_targets() {
    for (int64_t r = 0; r < count; ++r) {
      if (p.target != nullptr && !is_ignored(r)) {
        const int64_t y = p.target[first + r];
        target_input[r] = to_compute(logits.row(r)[y]);
        index_weight[r] = keep * (p.weight != nullptr ? p.weight[y] : (T)1);
      }
      const TargetRow<T> a = target_row(r);
      if (a.is_zero()) continue;
      target_sums<T, S, kCapped>(logits.row(r), classes, softcap, shift[r], a, &total[r], &product[r]);
    }
  }

  void take_known_lse() {
    for (int64_t r = 0; r < count; ++r) {
      shift[r] = p.shift[first + r];
      log_sum[r] = p.log_sum[first + r];
    }
    for (int64_t r = 0; r < count; r += kWidth<T>) store(sum + r, exp(load(log_sum + r)));
  }

  void choose_shifts() {
    unshifted = kCapped ? p.softcap < kUnshiftedLogit : all_below<T>(logits, count, classes, kUnshiftedLogit);
    for (int64_t r = 0; r < count && !unshifted; ++r) {
      shift[r] = softcap(row_maximum<T>(logits.row(r), classes));  // softcap is monotonic
    }
  }

  void sum_exponentials() {
    for (int r = 0; r < kRows; ++r) sum[r] = 1;
    for (int64_t r = 0; r < count; ++r) {
      T* kept = keeps_exponentials() ? exponentials.row(r) : nullptr;
      sum[r] = sum_of_exponentials<T, S, kCapped>(logits.row(r), classes, softcap, shift[r], kept,
                                                  logits.packed ? 0 : count * logits.stride);
    }
  }

  void write_losses() {
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      const Vec<T> row_log_sum = log(load(sum + r)), lse = load(shift + r) + row_log_sum;
      store(log_sum + r, row_log_sum);
      // -log softmax_y. Without a shift log(sum / e^z) keeps the digits that log(sum) - z would cancel.
      const Vec<T> z = softcap(load(target_input + r));
      const Vec<T> nll = unshifted ? log(load(sum + r) * exp(-z)) : row_log_sum - (z - load(shift + r));
      store(target_log_probability + r, -nll);
      Vec<T> row_loss = load(index_weight + r) * nll + (load(total + r) * row_log_sum - load(product + r));
      if (p.z_loss != 0) row_loss = row_loss + p.z_loss * lse * lse;
      store(loss + r, row_loss);
    }
    for (int64_t r = 0; r < count; ++r) {
      p.loss[first + r] = is_ignored(r) ? 0 : loss[r] * token_weight(p, first + r);
      write_by_products(p, first + r, shift[r], log_sum[r], target_log_probability[r]);
    }
  }

  void write_gradient(int64_t r, T scale) const {
    S* out = gradient.row(r);
    if (is_ignored(r)) {
      for_each_vector<T>(classes, [&](int64_t c, int lanes) { store_as(out + c, Vec<T>{}, lanes); });
      return;
    }
    const TargetRow<T> a = target_row(r);
    const T factor = (index_weight[r] + total[r] + 2 * p.z_loss * (shift[r] + log_sum[r])) * scale / sum[r];
    const auto write = [&](int64_t c, int lanes, Vec<T> e, Vec<T> slope) CHARLM_LAMBDA_INLINE {
      Vec<T> g = e * factor;
      if (!a.is_zero()) g = g - a(c, lanes) * scale;
      if constexpr (kCapped) g = g * slope;
      store_as(out + c, g, lanes);
    };
    // The target's, before it is rounded.
    const int64_t y = p.target != nullptr ? p.target[first + r] : 0;
    const bool kept = keeps_exponentials();
    const T target_e = kept ? exponentials.row(r)[y] : exp(softcap(broadcast<T>(target_input[r])) - shift[r])[0];
    const T target_slope = kCapped ? softcap.derivative(broadcast<T>(target_input[r]))[0] : (T)1;
    if (kept) {
      const T* e = exponentials.row(r);
      for_each_vector<T>(classes, [&](int64_t c, int lanes) { write(c, lanes, load_as(e + c, lanes), Vec<T>{}); });
    } else {
      const S* row = logits.row(r);
      for_each_vector<T>(classes, [&](int64_t c, int lanes) {
        const Vec<T> in = load_as(row + c, lanes);
        write(c, lanes, exp(softcap(in) - shift[r]), kCapped ? softcap.derivative(in) : Vec<T>{});
      });
    }
    if (p.target == nullptr) return;
    T g = target_e * factor - index_weight[r] * scale;
    if (!a.is_zero()) g -= spread * (p.weight != nullptr ? p.weight[y] : (T)1) * scale;
    from_compute(g * target_slope, out + y);
  }

  void write_probabilities_gradient(int64_t r, T scale) const {
    T* out = probabilities_gradient.row(r);
    for_each_vector<T>(classes, [&](int64_t c, int lanes) {
      Vec<T> g = log_sum[r] - (softcap(load_as(logits.row(r) + c, lanes)) - shift[r]);
      if (p.weight != nullptr) g = g * load_lanes<T>(p.weight + c, lanes, 0);
      store_lanes<T>(out + c, g * (keep * scale), lanes);
    });
  }

  // One class has probability 1 whatever its logit z: no loss but the penalty on lse = z. What would be the difference
  // of two equal numbers is z - z: 0, but NaN where z is not finite.
  void run_one_class() const {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t n = first + r;
      const T in = to_compute(logits.row(r)[0]), z = softcap(in), zero = z - z;
      if (!p.lse_is_known) {
        p.loss[n] = is_ignored(r) ? 0 : (zero + p.z_loss * z * z) * token_weight(p, n);
        write_by_products(p, n, z, (T)0, (T)0);
      }
      const T scale = gradient_scale(p, n);
      if (probabilities_gradient.data != nullptr) probabilities_gradient.row(r)[0] = zero * scale;
      if (gradient.data == nullptr) continue;
      const T slope = kCapped ? softcap.derivative(broadcast<T>(in))[0] : (T)1;
      from_compute(is_ignored(r) ? 0 : (zero + 2 * p.z_loss * z * slope) * scale, gradient.row(r));
    }
  }

  void run(T* scratch) {
    open(scratch);
    if (classes == 1) {
      run_one_class();
      return close();
    }
    p.lse_is_known ? take_known_lse() : choose_shifts();
    read_targets();
    if (!p.lse_is_known) {
      sum_exponentials();
      write_losses();
    }
    for (int64_t r = 0; r < count; ++r) {
      const T scale = gradient_scale(p, first + r);
      if (probabilities_gradient.data != nullptr) write_probabilities_gradient(r, scale);
      if (gradient.data != nullptr) write_gradient(r, scale);
    }
    close();
  }
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
