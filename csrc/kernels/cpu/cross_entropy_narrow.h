// Softmax cross-entropy of a few classes, the common case of a character model.
#pragma once

#include "kernels/cpu/cross_entropy_tile.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Few classes, the common case of a character model: contiguous rows, class indices, no smoothing and no cap. kWidth
// rows of C logits are C whole vectors, so the exponentials and the scaling run over flat blocks without a partial
// vector; only the sums look at rows.
constexpr int64_t kMaxNarrowClasses = 64;

template <typename T, typename S>
struct NarrowTile {
  static constexpr int kRows = (int)kCrossEntropyMaxTileRows;
  const CrossEntropy<T>& p;
  const int64_t classes = p.classes;
  // row_of[j][lane] is the row, of a block of kWidth, that lane of its vector j belongs to.
  IntVec<T> row_of[kMaxNarrowClasses];
  // counted is 1, or 0 for rows whose target is ignored.
  alignas(64) T sum[kRows], target_z[kRows], counted[kRows], index_weight[kRows], scale[kRows], factor[kRows];

  static bool applies_to(const CrossEntropy<T>& p) {
    const auto flat = [&](const ClassMatrix& matrix) {
      return is_direct<S>(matrix) && matrix.outer_stride == p.classes;
    };
    return p.classes > 1 && p.classes <= kMaxNarrowClasses && p.target != nullptr && p.label_smoothing == 0 &&
           p.softcap == 0 && flat(p.input) && (p.input_gradient.data == nullptr || flat(p.input_gradient));
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
  bool exponentials(const S* logits, int64_t vectors, T* e) const {
    IntVec<T> largest = {};
    for (int64_t j = 0; j < vectors; ++j) {
      const Vec<T> z = load_as(logits + j * kWidth<T>, kWidth<T>);
      const IntVec<T> magnitude = (IntVec<T>)absolute(z);
      largest = magnitude > largest ? magnitude : largest;
      store(e + j * kWidth<T>, exp_in_range(z));
    }
    const IntVec<T> beyond = largest >= (IntVec<T>)broadcast<T>(kUnshiftedLogit);
    return maximum_lane<T>(beyond ? broadcast<T>(1) : Vec<T>{}) == 0;
  }

  void read_targets(const S* logits, int64_t first, int64_t count) {
    const int64_t* target = p.target + first;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t y = target[r];
      const bool counts = y != p.ignore_index;
      counted[r] = counts;
      target_z[r] = counts ? to_compute(logits[r * classes + y]) : 0;
      index_weight[r] = !counts ? 0 : p.weight != nullptr ? p.weight[y] : (T)1;
      scale[r] = gradient_scale(p, first + r);
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
      const Vec<T> nll = log(total * exp_in_range(-load(target_z + r)));
      Vec<T> loss = weight * nll + p.z_loss * lse * lse;
      if (p.token_weights != nullptr) loss = loss * load(p.token_weights + first + r);
      store(p.loss + first + r, counts ? loss : Vec<T>{});
      if (p.shift != nullptr) store(p.shift + first + r, Vec<T>{});
      if (p.log_sum != nullptr) store(p.log_sum + first + r, lse);
      if (p.target_log_probability != nullptr) store(p.target_log_probability + first + r, -nll);
      write_factors(r, lse, total);
    }
  }

  // Of kWidth rows: what their exponentials are multiplied by.
  void write_factors(int64_t r, Vec<T> lse, Vec<T> total) {
    const Vec<T> slope = (load(index_weight + r) + 2 * p.z_loss * lse) * load(scale + r) / total;
    store(factor + r, load(counted + r) != 0 ? slope : Vec<T>{});
  }

  // The same from what forward has kept; false where it has shifted a row.
  bool take_known_lse(int64_t first, int64_t count) {
    IntVec<T> shifted = {};
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      const Vec<T> lse = load(p.log_sum + first + r);
      shifted |= load(p.shift + first + r) != 0;
      write_factors(r, lse, exp(lse));
    }
    return maximum_lane<T>(shifted ? broadcast<T>(1) : Vec<T>{}) == 0;
  }

  void write_gradient(const T* e, const int64_t* target, int64_t count, S* gradient) const {
    for (int64_t r = 0; r < count; r += kWidth<T>) {
      const Vec<T> factors = load(factor + r);
      for (int64_t j = 0; j < classes; ++j) {
        const int64_t at = r * classes + j * kWidth<T>;
        store_as(gradient + at, load(e + at) * permute(factors, row_of[j]), kWidth<T>);
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      if (counted[r] != 0) {  // from what was not rounded yet
        const int64_t at = r * classes + target[r];
        from_compute(e[at] * factor[r] - index_weight[r] * scale[r], gradient + at);
      } else {
        const S zero = {};
        for (int64_t c = 0; c < classes; ++c) gradient[r * classes + c] = zero;  // also where logits are not numbers
      }
    }
  }

  // Rows [first, first + count), count a multiple of kWidth. Returns false, with nothing written, where a logit is too
  // large or was for forward. The gradient may be written over the logits, so it comes last.
  bool run(int64_t first, int64_t count, T* e) {
    const S* logits = static_cast<const S*>(p.input.data) + first * classes;
    if (!exponentials(logits, count / kWidth<T> * classes, e)) return false;
    read_targets(logits, first, count);
    if (!p.lse_is_known) {
      sum_rows(e, count);
      write_losses(first, count);
    } else if (!take_known_lse(first, count)) {
      return false;
    }
    if (p.input_gradient.data != nullptr) {
      write_gradient(e, p.target + first, count, static_cast<S*>(p.input_gradient.data) + first * classes);
    }
    return true;
  }
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
