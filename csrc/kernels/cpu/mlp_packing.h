// Parameters from where torch has them to where a step wants them (MlpLayout), and gradients back.
#pragma once

#include "kernels/cpu/transpose.h"
#include "kernels/mlp_step.h"
#include "kernels/parallel.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// Zeros fill up the last vector.
template <typename T>
CHARLM_INLINE void pack_row(const T* in, int64_t count, T* out) {
  for_each_vector<T>(count, [&](int64_t i, int lanes) { store(out + i, load_lanes<T>(in + i, lanes, 0)); });
}

template <typename T>
CHARLM_INLINE void unpack_row(const T* in, int64_t count, T* out) {
  for_each_vector<T>(count, [&](int64_t i, int lanes) { store_lanes<T>(out + i, load(in + i), lanes); });
}

// function(block) for each of so many; threads take longer to start than a small model to copy.
template <typename Function>
CHARLM_INLINE void for_each_block(const MlpLayout& layout, int64_t count, const Function& function) {
  constexpr int64_t kSmall = 1 << 16;
  if (layout.size() >= kSmall) return for_each(count, function);
  for (int64_t block = 0; block < count; ++block) function(block);
}

template <typename T>
void pack(const MlpLayout& layout, const MlpTensors<const T>& tensors, T* flat) {
  const int64_t inputs = layout.inputs();
  for_each_block(layout, layout.hidden.count, [&](int64_t block) {
    const int64_t begin = layout.hidden.begin(block), width = layout.hidden.width(block);
    const int64_t used = layout.hidden.used(block);
    T *weight1 = flat + layout.weight1(block), *weight2 = flat + layout.weight2(block);
    pack_row(tensors.bias1 + begin, used, weight1);
    transpose(tensors.weight1 + begin * inputs, inputs, used, inputs, weight1 + width, width, width);
    for (int64_t v = 0; v < layout.vocab_size; ++v) {
      pack_row(tensors.weight2 + v * layout.hidden_dim + begin, used, weight2 + v * width);
    }
  });
  pack_row(tensors.embedding, layout.vocab_size * layout.embedding_dim, flat + layout.embedding());
  pack_row(tensors.bias2, layout.vocab_size, flat + layout.bias2());
  if (!layout.direct) return;
  for_each_block(layout, layout.classes.count, [&](int64_t block) {
    const int64_t width = layout.classes.width(block);
    transpose(tensors.direct_weight + layout.classes.begin(block) * inputs, inputs, layout.classes.used(block), inputs,
              flat + layout.direct_weight(block), width, width);
  });
}

template <typename T>
void unpack(const MlpLayout& layout, const T* flat, const MlpTensors<T>& tensors) {
  const int64_t inputs = layout.inputs();
  for_each_block(layout, layout.hidden.count, [&](int64_t block) {
    const int64_t begin = layout.hidden.begin(block), width = layout.hidden.width(block);
    const int64_t used = layout.hidden.used(block);
    const T *weight1 = flat + layout.weight1(block), *weight2 = flat + layout.weight2(block);
    unpack_row(weight1, used, tensors.bias1 + begin);
    transpose(weight1 + width, width, inputs, used, tensors.weight1 + begin * inputs, inputs, inputs);
    for (int64_t v = 0; v < layout.vocab_size; ++v) {
      unpack_row(weight2 + v * width, used, tensors.weight2 + v * layout.hidden_dim + begin);
    }
  });
  unpack_row(flat + layout.embedding(), layout.vocab_size * layout.embedding_dim, tensors.embedding);
  unpack_row(flat + layout.bias2(), layout.vocab_size, tensors.bias2);
  if (!layout.direct) return;
  for_each_block(layout, layout.classes.count, [&](int64_t block) {
    const int64_t width = layout.classes.width(block);
    transpose(flat + layout.direct_weight(block), width, inputs, layout.classes.used(block),
              tensors.direct_weight + layout.classes.begin(block) * inputs, inputs, inputs);
  });
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
