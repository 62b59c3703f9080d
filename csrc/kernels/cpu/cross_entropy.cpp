#include "kernels/cross_entropy.h"

#include "kernels/cpu/class_rows.h"
#include "kernels/cpu/math.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

// Below this magnitude of all logits of a tile, exp needs no shift: neither e^z, nor sums of them, nor their ratios
// leave the range of float. It saves the search for each row's maximum.
constexpr float kUnshiftedLogit = 30.0f;

template <typename T, bool kCapped>
struct Softcap {
  T cap, inverse;

  CHARLM_INLINE Vec<T> operator()(Vec<T> input) const {
    if constexpr (kCapped) return tanh(input * inverse) * cap;
    return input;
  }
  CHARLM_INLINE T operator()(T input) const { return (*this)(broadcast<T>(input))[0]; }
  // d z / d input, from the input.
  CHARLM_INLINE Vec<T> derivative(Vec<T> input) const {
    const Vec<T> t = tanh(input * inverse);
    return (T)1 - t * t;
  }
};

template <typename T>
bool all_below(const Rows<T>& logits, int64_t count, int64_t classes, T bound) {
  Vec<T> largest = {};  // NaNs pass: they make a row's sum NaN whatever its shift
  for (int64_t r = 0; r < count; ++r) {
    const T* row = logits.row(r);
    for_each_vector<T>(classes, [&](int64_t c, int lanes) {
      largest = maximum<T>(absolute(load_lanes<T>(row + c, lanes, 0)), largest);
    });
  }
  return maximum_lane<T>(largest) < bound;
}

template <typename T>
T row_maximum(const T* row, int64_t classes) {
  Vec<T> largest = broadcast<T>(-(T)INFINITY);
  for_each_vector<T>(classes, [&](int64_t c, int lanes) {
    largest = maximum<T>(largest, load_lanes<T>(row + c, lanes, -(T)INFINITY));
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

// sum_c exp(z_c - shift); each exp(z_c - shift) is kept in `exponentials` where that is not null.
template <typename T, bool kCapped>
CHARLM_INLINE T sum_of_exponentials(const T* row, int64_t classes, Softcap<T, kCapped> softcap, T shift,
                                    T* exponentials) {
  return sum_of_pieces<T>(classes, [&](int64_t first, int64_t count) CHARLM_LAMBDA_INLINE {
    Vec<T> sum = {};
    for_each_vector<T>(count, [&](int64_t i, int lanes) {
      const int64_t c = first + i;
      const Vec<T> e = exp(softcap(load_lanes<T>(row + c, lanes, 0)) - shift);
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
template <typename T, bool kCapped>
void target_sums(const T* row, int64_t classes, Softcap<T, kCapped> softcap, T shift, const TargetRow<T>& a, T* total,
                 T* product) {
  double sum_of_all = 0;
  *product = sum_of_pieces<T>(classes, [&](int64_t first, int64_t count) CHARLM_LAMBDA_INLINE {
    Vec<T> totals = {}, products = {};
    for_each_vector<T>(count, [&](int64_t i, int lanes) {
      const Vec<T> z = softcap(load_lanes<T>(row + first + i, lanes, 0)) - shift, coefficient = a(first + i, lanes);
      totals = totals + coefficient;
      products = products + coefficient * (lanes == kWidth<T> ? z : keep_lanes<T>(z, lanes));
    });
    sum_of_all += sum_lanes<T>(totals);
    return sum_lanes<T>(products);
  });
  // The spread alone is the smoothing, without the digits that a sum would lose.
  *total = a.is_constant() ? a.smoothing : (T)sum_of_all;
}

// A tile of up to kRows rows. Results are computed a vector of rows at a time, so the arrays hold harmless values for
// rows that are not there. The gradient may be written over the logits.
template <typename T, bool kCapped>
struct Tile {
  static constexpr int kRows = (int)kCrossEntropyMaxTileRows;
  const CrossEntropy<T>& p;
  const int64_t first, count, classes = p.classes;
  const Softcap<T, kCapped> softcap{p.softcap, kCapped ? 1 / p.softcap : 0};
  const T keep = 1 - p.label_smoothing, spread = p.label_smoothing / (T)p.classes;
  Rows<T> logits, gradient, probabilities, probabilities_gradient;
  bool unshifted = false;
  alignas(64) T shift[kRows] = {}, sum[kRows], log_sum[kRows] = {}, loss[kRows];
  // The target's logit and coefficient (1 - smoothing) weight_y; the other coefficients' sum, and sum a_c (z_c -
  // shift).
  alignas(64) T target_input[kRows] = {}, index_weight[kRows] = {}, total[kRows] = {}, product[kRows] = {};

  bool is_ignored(int64_t r) const { return p.target != nullptr && p.target[first + r] == p.ignore_index; }
  TargetRow<T> target_row(int64_t r) const {
    return {p.target == nullptr ? probabilities.row(r) : nullptr, p.weight, keep, spread, p.label_smoothing};
  }
  // Forward leaves each e^(z - shift) where the gradient goes, to be scaled. A cap's derivative needs the logits again.
  bool keeps_exponentials() const { return !kCapped && !p.lse_is_known && gradient.data != nullptr; }

  void open(T* scratch) {
    const int64_t block = cross_entropy_tile_rows(classes) * classes;
    logits = open_rows<T>(p.input, first, classes, scratch);
    gradient = open_rows<T>(p.input_gradient, first, classes, scratch + block);
    probabilities = open_rows<T>(p.probabilities, first, classes, scratch + 2 * block);
    probabilities_gradient = open_rows<T>(p.probabilities_gradient, first, classes, scratch + 3 * block);
    read_rows(logits, p.input, first, count, classes);
    if (p.probabilities.data != nullptr) read_rows(probabilities, p.probabilities, first, count, classes);
  }

  void close() const {
    if (gradient.data != nullptr) write_rows(gradient, p.input_gradient, first, count, classes);
    if (probabilities_gradient.data != nullptr) {
      write_rows(probabilities_gradient, p.probabilities_gradient, first, count, classes);
    }
  }

  void read_targets() {
    for (int64_t r = 0; r < count; ++r) {
      if (p.target != nullptr && !is_ignored(r)) {
        const int64_t y = p.target[first + r];
        target_input[r] = logits.row(r)[y];
        index_weight[r] = keep * (p.weight != nullptr ? p.weight[y] : (T)1);
      }
      const TargetRow<T> a = target_row(r);
      if (a.is_zero()) continue;
      target_sums<T, kCapped>(logits.row(r), classes, softcap, shift[r], a, &total[r], &product[r]);
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
      T* kept = keeps_exponentials() ? gradient.row(r) : nullptr;
      sum[r] = sum_of_exponentials<T, kCapped>(logits.row(r), classes, softcap, shift[r], kept);
    }
  }

  void write_losses() {
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      const Vec<T> row_log_sum = log(load(sum + r)), lse = load(shift + r) + row_log_sum;
      store(log_sum + r, row_log_sum);
      // -log softmax_y. Without a shift log(sum / e^z) keeps the digits that log(sum) - z would cancel.
      const Vec<T> z = softcap(load(target_input + r));
      const Vec<T> nll = unshifted ? log(load(sum + r) * exp(-z)) : row_log_sum - (z - load(shift + r));
      Vec<T> row_loss = load(index_weight + r) * nll + (load(total + r) * row_log_sum - load(product + r));
      if (p.z_loss != 0) row_loss = row_loss + p.z_loss * lse * lse;
      store(loss + r, row_loss);
    }
    for (int64_t r = 0; r < count; ++r) {
      p.loss[first + r] = is_ignored(r) ? 0 : loss[r];
      p.shift[first + r] = shift[r];
      p.log_sum[first + r] = log_sum[r];
    }
  }

  void write_gradient(int64_t r, T scale) const {
    T* out = gradient.row(r);
    if (is_ignored(r)) {
      for_each_vector<T>(classes, [&](int64_t c, int lanes) { store_lanes<T>(out + c, Vec<T>{}, lanes); });
      return;
    }
    const bool kept = keeps_exponentials();
    const TargetRow<T> a = target_row(r);
    const T factor = (index_weight[r] + total[r] + 2 * p.z_loss * (shift[r] + log_sum[r])) * scale / sum[r];
    for_each_vector<T>(classes, [&](int64_t c, int lanes) {
      const Vec<T> in = load_lanes<T>((kept ? out : logits.row(r)) + c, lanes, 0);
      Vec<T> g = (kept ? in : exp(softcap(in) - shift[r])) * factor;
      if (!a.is_zero()) g = g - a(c, lanes) * scale;
      if constexpr (kCapped) g = g * softcap.derivative(in);
      store_lanes<T>(out + c, g, lanes);
    });
    if (p.target != nullptr) {
      const T slope = kCapped ? softcap.derivative(broadcast<T>(target_input[r]))[0] : (T)1;
      out[p.target[first + r]] -= index_weight[r] * scale * slope;
    }
  }

  void write_probabilities_gradient(int64_t r, T scale) const {
    T* out = probabilities_gradient.row(r);
    for_each_vector<T>(classes, [&](int64_t c, int lanes) {
      Vec<T> g = log_sum[r] - (softcap(load_lanes<T>(logits.row(r) + c, lanes, 0)) - shift[r]);
      if (p.weight != nullptr) g = g * load_lanes<T>(p.weight + c, lanes, 0);
      store_lanes<T>(out + c, g * (keep * scale), lanes);
    });
  }

  // One class has probability 1 whatever its logit z: no loss but the penalty on lse = z. What would be the difference
  // of two equal numbers is z - z: 0, but NaN where z is not finite.
  void run_one_class() const {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t n = first + r;
      const T in = logits.row(r)[0], z = softcap(in), zero = z - z;
      if (!p.lse_is_known) {
        p.loss[n] = is_ignored(r) ? 0 : zero + p.z_loss * z * z;
        p.shift[n] = z;
        p.log_sum[n] = 0;
      }
      const T scale = p.scale * (p.row_scale != nullptr ? p.row_scale[n] : (T)1);
      if (probabilities_gradient.data != nullptr) probabilities_gradient.row(r)[0] = zero * scale;
      if (gradient.data == nullptr) continue;
      const T slope = kCapped ? softcap.derivative(broadcast<T>(in))[0] : (T)1;
      gradient.row(r)[0] = is_ignored(r) ? 0 : (zero + 2 * p.z_loss * z * slope) * scale;
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
      const T scale = p.scale * (p.row_scale != nullptr ? p.row_scale[first + r] : (T)1);
      if (probabilities_gradient.data != nullptr) write_probabilities_gradient(r, scale);
      if (gradient.data != nullptr) write_gradient(r, scale);
    }
    close();
  }
};

template <typename T, bool kCapped>
void tile(const CrossEntropy<T>& problem, int64_t first, int64_t count, T* scratch) {
  Tile<T, kCapped>{problem, first, count}.run(scratch);
}

// Few classes, the common case of a character model: contiguous rows, class indices, no smoothing and no cap. kWidth
// rows of C logits are C whole vectors, so the exponentials and the scaling run over flat blocks without a partial
// vector; only the sums look at rows.
constexpr int64_t kMaxNarrowClasses = 64;

template <typename T>
struct NarrowTile {
  static constexpr int kRows = (int)kCrossEntropyMaxTileRows;
  const CrossEntropy<T>& p;
  const int64_t classes = p.classes;
  // row_of[j][lane] is the row, of a block of kWidth, that lane of its vector j belongs to.
  IntVec<T> row_of[kMaxNarrowClasses];
  // counted is 1, or 0 for rows whose target is ignored.
  alignas(64) T sum[kRows], target_z[kRows], counted[kRows], index_weight[kRows], factor[kRows];

  static bool applies_to(const CrossEntropy<T>& p) {
    const auto flat = [&](const ClassMatrix& matrix) {
      return is_direct<T>(matrix) && matrix.outer_stride == p.classes;
    };
    return p.classes > 1 && p.classes <= kMaxNarrowClasses && p.target != nullptr && p.label_smoothing == 0 &&
           p.softcap == 0 && !p.lse_is_known && flat(p.input) &&
           (p.input_gradient.data == nullptr || flat(p.input_gradient));
  }

  explicit NarrowTile(const CrossEntropy<T>& problem) : p(problem) {
    // Counted, not divided: 64-bit divisions would cost as much as a small batch.
    for (int64_t i = 0, row = 0, left = classes; i < classes * kWidth<T>; ++i, --left) {
      if (left == 0) {
        ++row;
        left = classes;
      }
      row_of[i / kWidth<T>][i % kWidth<T>] = row;
    }
  }

  // e = exp(logits); false where a logit is too large to go without a shift, or NaN. As integers, magnitudes are in the
  // same order as the numbers, and NaN is above them all.
  bool exponentials(const T* logits, int64_t vectors, T* e) const {
    IntVec<T> largest = {};
    for (int64_t j = 0; j < vectors; ++j) {
      const Vec<T> z = load(logits + j * kWidth<T>);
      const IntVec<T> magnitude = (IntVec<T>)absolute(z);
      largest = magnitude > largest ? magnitude : largest;
      store(e + j * kWidth<T>, exp_in_range(z));
    }
    const IntVec<T> beyond = largest >= (IntVec<T>)broadcast<T>(kUnshiftedLogit);
    return maximum_lane<T>(beyond ? broadcast<T>(1) : Vec<T>{}) == 0;
  }

  void read_targets(const T* logits, const int64_t* target, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t y = target[r];
      const bool counts = y != p.ignore_index;
      counted[r] = counts;
      target_z[r] = counts ? logits[r * classes + y] : 0;
      index_weight[r] = !counts ? 0 : p.weight != nullptr ? p.weight[y] : (T)1;
    }
  }

  void sum_rows(const T* e, int64_t count) {
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      Vec<T> rows[kWidth<T>];
      for (int i = 0; i < kWidth<T>; ++i) {
        rows[i] = Vec<T>{};
        for_each_vector<T>(classes, [&](int64_t c, int lanes) {
          rows[i] = rows[i] + load_lanes<T>(e + (r + i) * classes + c, lanes, 0);
        });
      }
      store(sum + r, sums_of<T>(rows));
    }
  }

  void write_losses(int64_t first, int64_t count) {
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      const Vec<T> weight = load(index_weight + r), total = load(sum + r), lse = log(total);
      const IntVec<T> counts = load(counted + r) != 0;
      // log(sum / e^z) keeps the digits that log(sum) - z would cancel.
      const Vec<T> loss = weight * log(total * exp_in_range(-load(target_z + r))) + p.z_loss * lse * lse;
      store(p.loss + first + r, counts ? loss : Vec<T>{});
      store(p.shift + first + r, Vec<T>{});
      store(p.log_sum + first + r, lse);
      store(factor + r, counts ? (weight + 2 * p.z_loss * lse) * p.scale / total : Vec<T>{});
    }
  }

  void write_gradient(const T* e, const int64_t* target, int64_t count, T* gradient) const {
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      const Vec<T> factors = load(factor + r);
      for (int64_t j = 0; j < classes; ++j) {
        const int64_t at = r * classes + j * kWidth<T>;
        store(gradient + at, load(e + at) * permute(factors, row_of[j]));
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      if (counted[r] != 0) {
        gradient[r * classes + target[r]] -= index_weight[r] * p.scale;
      } else {
        for (int64_t c = 0; c < classes; ++c) gradient[r * classes + c] = 0;  // also where logits are not numbers
      }
    }
  }

  // Rows [first, first + count), count a multiple of kWidth. Returns false, with nothing written, where a logit is too
  // large. The gradient may be written over the logits, so it comes last.
  bool run(int64_t first, int64_t count, T* e) {
    const T* logits = static_cast<const T*>(p.input.data) + first * classes;
    if (!exponentials(logits, count / kWidth<T> * classes, e)) return false;
    read_targets(logits, p.target + first, count);
    sum_rows(e, count);
    write_losses(first, count);
    if (p.input_gradient.data != nullptr) {
      write_gradient(e, p.target + first, count, static_cast<T*>(p.input_gradient.data) + first * classes);
    }
    return true;
  }
};

template <typename T>
void tiles(const CrossEntropy<T>& problem, int64_t first, int64_t last, T* scratch) {
  const auto general = problem.softcap != 0 ? tile<T, true> : tile<T, false>;
  const int64_t tile_rows = cross_entropy_tile_rows(problem.classes);
  const int64_t end = last * tile_rows < problem.rows ? last * tile_rows : problem.rows;
  int64_t row = first * tile_rows;
  if (end - row >= kWidth<T> && NarrowTile<T>::applies_to(problem)) {
    NarrowTile<T> narrow(problem);
    for (; end - row >= kWidth<T>; row += tile_rows) {
      const int64_t left = end - row < tile_rows ? end - row : tile_rows, count = left / kWidth<T> * kWidth<T>;
      if (!narrow.run(row, count, scratch)) general(problem, row, count, scratch);
      if (count < left) general(problem, row + count, left - count, scratch);
    }
  }
  for (; row < end; row += tile_rows) {
    general(problem, row, end - row < tile_rows ? end - row : tile_rows, scratch);
  }
}

}  // namespace

template <>
CrossEntropyKernels<float> kernels() {
  return {tiles<float>};
}
template <>
CrossEntropyKernels<double> kernels() {
  return {tiles<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
