#include "kernels/bigram.h"

#include "kernels/cpu/block_gemm.h"
#include "kernels/cpu/optimizer.h"
#include "kernels/cpu/softmax_rows.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 64;

// The row of a (V, V) matrix that belongs to a context.
template <typename T>
T* matrix_row(const BigramStep<T>& p, T* matrix, int64_t context) {
  return matrix + p.batch.tokens[p.batch.context_rows[context]] * p.classes.padded();
}
template <typename T>
void read_rows(const BigramStep<T>& p, const SoftmaxTile<T>& tile) {
  for (int64_t c = 0; c < p.classes.count; ++c) {
    const int64_t width = p.classes.width(c);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* in = matrix_row(p, p.weight, tile.first + r) + p.classes.begin(c);
      for (int64_t j = 0; j < width; j += kWidth<T>) store(tile.chunk(c) + r * width + j, load(in + j));
    }
  }
}
template <typename T>
void add_rows(const BigramStep<T>& p, const SoftmaxTile<T>& tile, T scale, T* matrix) {
  for (int64_t c = 0; c < p.classes.count; ++c) {
    const int64_t width = p.classes.width(c);
    for (int64_t r = 0; r < tile.rows; ++r) {
      T* out = matrix_row(p, matrix, tile.first + r) + p.classes.begin(c);
      for (int64_t j = 0; j < width; j += kWidth<T>) {
        store(out + j, load(out + j) + scale * load(tile.chunk(c) + r * width + j));
      }
    }
  }
}

template <typename T>
double step(const BigramStep<T>& p) {
  const UpdateTime update_time = bigram_update_time(p.update);
  const bool in_place = update_time == UpdateTime::kInPlace;
  const int64_t size = p.classes.size * p.classes.padded();
  T* z = p.workspace;
  T* target_logits = z + kTileRows * p.classes.padded();
  alignas(64) T shift[kTileRows], scale[kTileRows], sum[kTileRows], log_sum[kTileRows];
  double loss = 0;
  for (int64_t first = 0; first < p.batch.rows; first += kTileRows) {
    const int64_t left = p.batch.rows - first;
    const SoftmaxTile<T> tile{p.batch, p.classes, 0, first, left < kTileRows ? left : kTileRows, kTileRows, z};
    read_rows(p, tile);
    tile.target_logits(target_logits);
    if (tile.is_small(0, p.classes.count)) {
      for (int64_t r = 0; r < tile.rows; ++r) shift[r] = 0;
    } else {
      tile.row_maximum(0, p.classes.count, shift);
    }
    tile.exponentials(0, p.classes.count, shift, sum);
    for (int64_t r = 0; r < tile.rows; ++r) scale[r] = tile.row_weight(r) / sum[r];
    for (int64_t r = tile.rows; r % kWidth<T> != 0; ++r) sum[r] = 1;  // the logarithms are of whole vectors
    for (int64_t r = 0; r < tile.rows; r += kWidth<T>) store(log_sum + r, log(load(sum + r)));
    loss += tile.losses(shift, log_sum, target_logits);
    if (update_time == UpdateTime::kNever) continue;
    tile.backward(0, p.classes.count, shift, scale);
    tile.backward_targets(0, p.classes.count, target_logits, 1);
    add_rows(p, tile, in_place ? -p.update->rates.learning_rate : (T)1, in_place ? p.weight : p.gradient);
  }
  if (in_place || update_time == UpdateTime::kNever) return loss;
  apply(*p.update, clip_scale(*p.update, p.gradient, size), p.weight, p.gradient, 0, size);
  __builtin_memset(p.gradient, 0, size * sizeof(T));
  return loss;
}

template <typename T>
Blocks classes(int64_t vocab_size) {
  return Blocks(vocab_size, kWidth<T>, kMaxVectors);
}
template <typename T>
int64_t workspace(const Blocks& classes, int64_t entries) {
  return kTileRows * classes.padded() + entries;
}

}  // namespace

template <>
BigramKernels<float> kernels() {
  return {classes<float>, workspace<float>, step<float>};
}
template <>
BigramKernels<double> kernels() {
  return {classes<double>, workspace<double>, step<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
