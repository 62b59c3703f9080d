// The output layer of a training step and its loss, for one tile of contexts: logits, softmax, and their gradients.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/mlp_input_layers.h"
#include "kernels/cpu/mlp_memory.h"
#include "kernels/cpu/softmax_rows.h"
#include "kernels/cpu/transpose.h"
#include "kernels/parallel.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename T>
class OutputLayer {
 public:
  OutputLayer(const MlpMemory<T>& memory, const InputLayers<T>& inputs)
      : m_(memory), step_(memory.step), layout_(memory.layout), inputs_(inputs) {}

  // bias2 and the direct connection.
  void start_logits(const SoftmaxTile<T>& tile, int64_t c) const {
    with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
      const T* bias = step_.parameters + layout_.bias2() + layout_.classes.begin(c);
      T* z = tile.chunk(c);
      const auto add_bias = [&](const Vec<T>(&sum)[N]) {
        for (int n = 0; n < N; ++n) store(z + n * kWidth<T>, sum[n] + load(bias + n * kWidth<T>));
        z += N * kWidth<T>;
      };
      if (layout_.direct) {
        inputs_.template forward_direct<N>(tile, c, add_bias);
      } else {
        for (int64_t r = 0; r < tile.rows; ++r) add_bias({});
      }
    });
  }

  // One block of logits += h W2^T over one block of the hidden dimension. With one block of classes the transposed
  // weights stay where they are for all tiles.
  void add_logits(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t c, int64_t block,
                  bool is_first) const {
    const Blocks& hidden = layout_.hidden;
    with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
      const int64_t width = N * kWidth<T>, hidden_width = hidden.width(block);
      T* weight = m_.transposed_at(slot, class_slot) + hidden.begin(block) * width;
      if (is_first || layout_.classes.count > 1) {
        transpose(step_.parameters + layout_.weight2(block) + layout_.classes.begin(c) * hidden_width, hidden_width,
                  layout_.classes.used(c), hidden_width, weight, width, width);
      }
      multiply<N>(tile.rows, hidden.used(block), Left<T, false>{m_.hidden_at(slot, block), hidden_width}, weight,
                  tile.chunk(c), true);
    });
  }

  // Of the class blocks [begin, end), while their logits are in cache.
  void finish_logits(Slot<T>* slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t begin, int64_t end) const {
    if (step_.softcap != 0) tile.cap(begin, end);
    const bool is_first = begin == m_.class_block(class_slot);
    slot->small[class_slot] = (is_first || slot->small[class_slot]) && tile.is_small(begin, end);
  }

  // Leaves exponentials (logits, with a softcap), each row's shift and sum, and the logits of the targets.
  void forward_softmax(const Slot<T>& slot, const SoftmaxTile<T>& tile) const {
    const int64_t slots = m_.tiling.class_slots, stride = m_.tiling.tile_rows;
    tile.target_logits(m_.target_logits);
    bool small = true;
    for (int64_t s = 0; s < slots; ++s) small &= slot.small[s];
    if (small) {
      fill_zero(slot.shift, tile.rows);
    } else {
      for_each(slots,
               [&](int64_t s) { tile.row_maximum(m_.class_block(s), m_.class_block(s + 1), slot.sum + s * stride); });
      for (int64_t r = 0; r < tile.rows; ++r) {
        T largest = slot.sum[r];
        for (int64_t s = 1; s < slots; ++s) {
          largest = slot.sum[s * stride + r] > largest ? slot.sum[s * stride + r] : largest;
        }
        slot.shift[r] = largest;
      }
    }
    for_each(slots, [&](int64_t s) {
      tile.exponentials(m_.class_block(s), m_.class_block(s + 1), slot.shift, slot.sum + s * stride);
    });
    for (int64_t r = 0; r < tile.rows; ++r) {
      for (int64_t s = 1; s < slots; ++s) slot.sum[r] += slot.sum[s * stride + r];
      slot.scale[r] = m_.step_scale * tile.row_weight(r) / slot.sum[r];
    }
    // finish_loss takes the logarithms of whole vectors.
    for (int64_t r = tile.rows; r % kWidth<T> != 0; ++r) slot.sum[r] = 1;
  }

  // The logits of the class blocks [begin, end) become d loss / d logits, added to that of bias2.
  void backward_softmax(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t begin, int64_t end,
                        bool is_first) const {
    tile.backward(begin, end, slot.shift, slot.scale);
    tile.backward_targets(begin, end, m_.target_logits, m_.step_scale);
    backward_bias2(slot, tile, begin, end, is_first);
  }

  // Adds the tile's loss; target logits become the entries' losses. Overwrites the scales.
  void finish_loss(Slot<T>* slot, const SoftmaxTile<T>& tile) const {
    T* log_sum = slot->scale;
    for (int64_t r = 0; r < tile.rows; r += kWidth<T>) store(log_sum + r, log(load(slot->sum + r)));
    slot->loss += tile.losses(slot->shift, log_sum, m_.target_logits);
  }

  // d h (+)= dz W2, then d W2 (+)= dz^T h, for one block of classes and one of the hidden dimension.
  void backward_class_block(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t block,
                            int64_t c, bool is_first) const {
    const int64_t class_width = layout_.classes.width(c), used = layout_.classes.used(c);
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      const int64_t offset = layout_.classes.begin(c) * N * kWidth<T>;
      multiply<N>(tile.rows, used, Left<T, false>{tile.chunk(c), class_width},
                  step_.parameters + layout_.weight2(block) + offset, m_.hidden_gradient_at(slot, class_slot, block),
                  c != m_.class_block(class_slot));
      multiply<N>(used, tile.rows, Left<T, true>{tile.chunk(c), class_width}, m_.hidden_at(slot, block),
                  m_.weight2_gradient_at(slot, block) + offset, m_.in_place() || !is_first);
    });
  }

 private:
  void backward_bias2(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t begin, int64_t end,
                      bool is_first) const {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t width = layout_.classes.width(c);
      T* out = slot.gradient + layout_.bias2() + layout_.classes.begin(c);
      for (int64_t j = 0; j < width; j += kWidth<T>) {
        Vec<T> sum = is_first && !m_.in_place() ? Vec<T>{} : load(out + j);
        for (int64_t r = 0; r < tile.rows; ++r) sum += load(tile.chunk(c) + r * width + j);
        store(out + j, sum);
      }
    }
  }

  const MlpMemory<T>& m_;
  const MlpStep<T>& step_;
  const MlpLayout& layout_;
  const InputLayers<T>& inputs_;
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
