#include "kernels/mlp_cross_entropy.h"

namespace charlm {
namespace {

int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

// Calls function(packed, natural) for the position of every element of every parameter in the flat array and in its
// own tensor, member by member.
template <typename T, typename Function>
void for_each_element(const MlpLayout& layout, const MlpTensors<T>& tensors, const Function& function) {
  const int64_t inputs = layout.inputs();
  for (int64_t block = 0; block < layout.hidden.count; ++block) {
    const int64_t begin = layout.hidden.begin(block), width = layout.hidden.width(block);
    for (int64_t j = 0; j < layout.hidden.used(block); ++j) {
      const int64_t h = begin + j;
      if (tensors.bias1 != nullptr) function(layout.weight1(block) + j, &tensors.bias1[h]);
      if (tensors.weight1 != nullptr) {
        for (int64_t i = 0; i < inputs; ++i) {
          function(layout.weight1(block) + (1 + i) * width + j, &tensors.weight1[h * inputs + i]);
        }
      }
    }
    if (tensors.weight2 != nullptr) {
      for (int64_t v = 0; v < layout.vocab_size; ++v) {
        for (int64_t j = 0; j < layout.hidden.used(block); ++j) {
          function(layout.weight2(block) + v * width + j, &tensors.weight2[v * layout.hidden_dim + begin + j]);
        }
      }
    }
  }
  if (tensors.embedding != nullptr) {
    for (int64_t i = 0; i < layout.vocab_size * layout.embedding_dim; ++i) {
      function(layout.embedding() + i, &tensors.embedding[i]);
    }
  }
  for (int64_t v = 0; v < layout.vocab_size && tensors.bias2 != nullptr; ++v) {
    function(layout.bias2() + v, &tensors.bias2[v]);
  }
  for (int64_t block = 0; block < layout.classes.count && tensors.direct_weight != nullptr; ++block) {
    for (int64_t j = 0; j < layout.classes.used(block); ++j) {
      const int64_t v = layout.classes.begin(block) + j;
      for (int64_t i = 0; i < inputs; ++i) {
        function(layout.direct_weight(block) + i * layout.classes.width(block) + j,
                 &tensors.direct_weight[v * inputs + i]);
      }
    }
  }
}

}  // namespace

template <typename T>
void pack(const MlpLayout& layout, const MlpTensors<T>& tensors, T* flat) {
  for_each_element(layout, tensors, [&](int64_t packed, const T* natural) { flat[packed] = *natural; });
}

template <typename T>
void unpack(const MlpLayout& layout, const T* flat, const MlpTensors<T>& tensors) {
  for_each_element(layout, tensors, [&](int64_t packed, T* natural) { *natural = flat[packed]; });
}

template void pack(const MlpLayout&, const MlpTensors<float>&, float*);
template void pack(const MlpLayout&, const MlpTensors<double>&, double*);
template void unpack(const MlpLayout&, const float*, const MlpTensors<float>&);
template void unpack(const MlpLayout&, const double*, const MlpTensors<double>&);

MlpTiling::MlpTiling(const MlpLayout& layout, int64_t rows) {
  // A tile of a small vocabulary fits into the second-level cache with all that is done to it. With many classes the
  // weights are what has to be read again for every tile, so tiles are large, and classes are shared out instead.
  const bool many_classes = layout.vocab_size > 256;
  tile_rows = many_classes ? 256 : 128;
  tiles = (rows + tile_rows - 1) / tile_rows;
  slots = 1;  // a power of two, which two or four threads can share evenly, of at least 4 tiles each
  while (!many_classes && slots < kMaxSlots && 8 * slots <= tiles) slots *= 2;
  class_slots = many_classes ? clamp(layout.classes.count / 16, 1, kMaxClassSlots) : 1;
}

}  // namespace charlm
