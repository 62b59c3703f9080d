// Softmax cross-entropy of a tile of contexts, each with any number of weighted targets, one range of class blocks at a
// time: several ranges of one tile may be worked on at once, and what they share is passed between the stages.
#pragma once

#include "kernels/batch.h"
#include "kernels/blocks.h"
#include "kernels/cpu/math.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Where no logit is beyond this, exp needs no shift: neither e^z, nor sums of them, nor their ratios leave the range of
// float.
inline constexpr float kUnshifted = 30.0f;

// Logits of the contexts [first, first + rows): chunk `block` at z + tile_rows * classes.begin(block), rows contiguous.
template <typename T>
struct SoftmaxTile {
  const ContextBatch<T>& batch;
  const Blocks& classes;
  T softcap;  // 0: none
  int64_t first, rows, tile_rows;
  T* z;

  T* chunk(int64_t block) const { return z + tile_rows * classes.begin(block); }
  T* at(int64_t row, int64_t target) const {
    const int64_t block = classes.block_of(target);
    return chunk(block) + row * classes.width(block) + target - classes.begin(block);
  }
  T weight(int64_t entry) const { return batch.weights == nullptr ? batch.weight : batch.weights[entry]; }
  T row_weight(int64_t row) const {
    const int64_t begin = batch.entry_begin[first + row], end = batch.entry_begin[first + row + 1];
    if (batch.weights == nullptr) return (T)(end - begin) * batch.weight;
    T total = 0;
    for (int64_t e = begin; e < end; ++e) total += batch.weights[e];
    return total;
  }

  // One class has probability 1 whatever its logit: no loss, no gradient. A shift by the logit makes the loss exactly
  // 0.
  bool has_one_class() const { return classes.size == 1; }

  // Calls body(row, values, lanes) for every vector of the blocks [begin, end); `lanes` < kWidth before padding.
  template <typename Body>
  CHARLM_INLINE void each_vector(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t width = classes.width(block), used = classes.used(block), whole = used / kWidth<T> * kWidth<T>;
      for (int64_t r = 0; r < rows; ++r) {
        T* row = chunk(block) + r * width;
        for (int64_t c = 0; c < whole; c += kWidth<T>) body(r, row + c, kWidth<T>);
        if (whole < used) body(r, row + whole, (int)(used - whole));
      }
    }
  }

  void cap(int64_t begin, int64_t end) const {
    const T inverse = 1 / softcap;
    each_vector(begin, end, [&](int64_t, T* values, int) { store(values, tanh(load(values) * inverse) * softcap); });
  }

  // Whether every logit is between -kUnshifted and kUnshifted, so that no shift is needed.
  bool is_small(int64_t begin, int64_t end) const {
    if (has_one_class()) return false;
    IntVec<T> beyond = {};
    each_vector(begin, end, [&](int64_t, T* values, int) {  // padding is small
      const Vec<T> logits = load(values);
      beyond |= ~((logits < (T)kUnshifted) & (logits > -(T)kUnshifted));  // NaN is neither
    });
    for (int lane = 0; lane < kWidth<T>; ++lane) {
      if (beyond[lane] != 0) return false;
    }
    return true;
  }

  // maximum[row] = its largest logit.
  void row_maximum(int64_t begin, int64_t end, T* maximum_of_row) const {
    for (int64_t r = 0; r < rows; ++r) maximum_of_row[r] = -(T)INFINITY;
    each_vector(begin, end, [&](int64_t r, T* values, int lanes) {
      const T largest = maximum_lane<T>(load_lanes<T>(values, lanes, -(T)INFINITY));
      maximum_of_row[r] = largest > maximum_of_row[r] ? largest : maximum_of_row[r];
    });
  }

  // The tile's entries; each has its row, so that loops over them have no short loops inside.
  int64_t entries_begin() const { return batch.entry_begin[first]; }
  int64_t entries_end() const { return batch.entry_begin[first + rows]; }
  int64_t row_of(int64_t entry) const { return batch.entry_rows[entry] - first; }

  // logits of the entries' targets.
  void target_logits(T* logits) const {
    for (int64_t e = entries_begin(); e < entries_end(); ++e) logits[e] = *at(row_of(e), batch.targets[e]);
  }

  // Target logits become -log p of the entries' targets; returns the sum of these times their weights.
  double losses(const T* shift, const T* log_sum, T* target_logits) const {
    const int64_t begin = entries_begin(), end = entries_end();
    for (int64_t e = begin; e < end; ++e) {
      target_logits[e] = log_sum[row_of(e)] - (target_logits[e] - shift[row_of(e)]);
    }
    Vec<T> sum = {};
    for_each_vector<T>(end - begin, [&](int64_t i, int lanes) {
      const Vec<T> loss = load_lanes<T>(target_logits + begin + i, lanes, 0);
      sum += batch.weights == nullptr ? loss * batch.weight : loss * load_lanes<T>(batch.weights + begin + i, lanes, 0);
    });
    return (double)sum_lanes<T>(sum);
  }

  // sum[row] = sum of e^(z - shift[row]); z becomes the exponentials unless a softcap still needs it.
  void exponentials(int64_t begin, int64_t end, const T* shift, T* sum) const {
    for (int64_t r = 0; r < rows; ++r) sum[r] = 0;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t width = classes.width(block), used = classes.used(block);
      for (int64_t r = 0; r < rows; ++r) {
        T* row = chunk(block) + r * width;
        Vec<T> total = {};
        for (int64_t c = 0; c < width; c += kWidth<T>) {
          Vec<T> e = exp(load(row + c) - shift[r]);
          if (used - c < kWidth<T>) e = keep_lanes<T>(e, (int)(used - c));
          total += e;
          if (softcap == 0) store(row + c, e);
        }
        sum[r] += sum_lanes<T>(total);
      }
    }
  }

  // z becomes d loss / d z (before the softcap), but for the targets' part. scale[row] = weight of the row / sum.
  void backward(int64_t begin, int64_t end, const T* shift, const T* scale) const {
    const T inverse = softcap != 0 ? 1 / softcap : 0;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t width = classes.width(block), used = classes.used(block);
      for (int64_t r = 0; r < rows; ++r) {
        T* row = chunk(block) + r * width;
        for (int64_t c = 0; c < width; c += kWidth<T>) {
          Vec<T> g = load(row + c);
          if (softcap != 0) {
            const Vec<T> t = g * inverse;
            g = exp(g - shift[r]) * (1 - t * t);
            if (used - c < kWidth<T>) g = keep_lanes<T>(g, (int)(used - c));
          }
          store(row + c, has_one_class() ? g - g : g * scale[r]);  // NaN stays NaN
        }
      }
    }
  }

  // The targets' part, times `scale`. target_logits are those of target_logits().
  void backward_targets(int64_t begin, int64_t end, const T* target_logits, T scale) const {
    if (has_one_class()) return;
    const int64_t first_class = classes.begin(begin), end_class = classes.begin(end), last_entry = entries_end();
    for (int64_t e = entries_begin(); e < last_entry; ++e) {
      const int64_t target = batch.targets[e];
      if (target < first_class || target >= end_class) continue;
      const T t = softcap != 0 ? target_logits[e] / softcap : 0;
      *at(row_of(e), target) -= scale * weight(e) * (1 - t * t);
    }
  }
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
