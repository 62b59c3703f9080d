// The layers of a training step that read embeddings, both by tables (cpu/projection.h): the hidden layer and the
// direct connection to the logits. Their gradients meet in that of the embedding.
#pragma once

#include "kernels/cpu/math.h"
#include "kernels/cpu/mlp_memory.h"
#include "kernels/cpu/optimizer.h"
#include "kernels/cpu/projection.h"
#include "kernels/parallel.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename T>
class InputLayers {
 public:
  explicit InputLayers(const MlpMemory<T>& memory)
      : m_(memory),
        step_(memory.step),
        layout_(memory.layout),
        hidden_{step_.batch, layout_.context_length, layout_.dims, memory.embedded, true},
        direct_{step_.batch, layout_.context_length, layout_.dims, memory.embedded, false} {}

  void gather_embeddings() const {
    const int64_t dim = layout_.embedding_dim;
    const T* embedding = step_.parameters + layout_.embedding();
    for (int64_t row = 0; row < m_.table_rows; ++row) {
      T* out = m_.embedded + row * (1 + dim);
      const T* in = embedding + step_.batch.tokens[row] * dim;
      out[0] = 1;
      for (int64_t d = 0; d < dim; ++d) out[1 + d] = in[d];
    }
  }

  void project(int64_t block) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      hidden_.template project<N>(step_.parameters + layout_.weight1(block), m_.tables_at(block));
    });
  }
  void project_direct(int64_t c) const {
    with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
      direct_.template project<N>(step_.parameters + layout_.direct_weight(c), m_.direct_tables_at(c));
    });
  }

  void forward_hidden(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t block) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      T* out = m_.hidden_at(slot, block);
      hidden_.template gather<N>(m_.tables_at(block), tile.first, tile.first + tile.rows, [&](const Vec<T>(&sum)[N]) {
        for (int n = 0; n < N; ++n) store(out + n * kWidth<T>, tanh(sum[n]));
        out += N * kWidth<T>;
      });
    });
  }
  // Calls body(sum) with the direct connection's part of the logits of each context of the tile.
  template <int N, typename Body>
  CHARLM_INLINE void forward_direct(const SoftmaxTile<T>& tile, int64_t c, const Body& body) const {
    direct_.template gather<N>(m_.direct_tables_at(c), tile.first, tile.first + tile.rows, body);
  }

  // d pre = d h (1 - h^2), added to the tables' gradient.
  void backward_hidden(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t block, bool is_first) const {
    const int64_t class_slots = m_.tiling.class_slots, slot_stride = m_.tiling.tile_rows * layout_.hidden.padded();
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      const int64_t width = N * kWidth<T>;
      T* out = m_.tables_gradient_at(slot, block);
      if (is_first) fill_zero(out, m_.table_rows * width);
      const T* h = m_.hidden_at(slot, block);
      const T* in = m_.hidden_gradient_at(slot, 0, block);
      for (int64_t r = 0; r < tile.rows; ++r) {
        Vec<T> gradient[N];
        const auto at = [&](const T* matrix, int n)
                            CHARLM_LAMBDA_INLINE { return load(matrix + r * width + n * kWidth<T>); };
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) gradient[n] = at(in, n);
        for (int64_t s = 1; s < class_slots; ++s) {
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) gradient[n] += at(in + s * slot_stride, n);
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) gradient[n] *= 1 - at(h, n) * at(h, n);
        hidden_.template scatter<N>(tile.first + r, gradient, out);
      }
    });
  }
  void backward_direct(const Slot<T>& slot, const SoftmaxTile<T>& tile, bool is_first) const {
    for_each(m_.tiling.class_slots, [&](int64_t s) {
      for (int64_t c = m_.class_block(s); c < m_.class_block(s + 1); ++c) {
        with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
          T* out = m_.direct_gradient_at(slot, c);
          if (is_first) fill_zero(out, m_.table_rows * N * kWidth<T>);
          for (int64_t r = 0; r < tile.rows; ++r) {
            Vec<T> gradient[N];
            for (int n = 0; n < N; ++n) gradient[n] = load(tile.chunk(c) + (r * N + n) * kWidth<T>);
            direct_.template scatter<N>(tile.first + r, gradient, out);
          }
        });
      }
    });
  }

  // From the gradients of the tables, once all tiles have added to them. The embedding's gradient comes before the
  // weights that it reads are updated.
  void backward_hidden_tables() const {
    for_each(layout_.context_length, [&](int64_t t) {
      for (int64_t block = 0; block < layout_.hidden.count; ++block) backward_embedding(t, block);
    });
    for_each(layout_.hidden.count, [&](int64_t block) { backward_weight1(block); });
  }
  // The same for one block, while it is in cache.
  void backward_hidden_tables_of(int64_t block) const {
    for (int64_t t = 0; t < layout_.context_length; ++t) backward_embedding(t, block);
    backward_weight1(block);
  }
  void backward_direct_tables() const {
    const Blocks& classes = layout_.classes;
    const Slot<T>& total = m_.slots[0];
    for_each(layout_.context_length, [&](int64_t t) {
      for (int64_t c = 0; c < classes.count; ++c) {
        direct_.backward_embedding(t, classes.width(c), step_.parameters + layout_.direct_weight(c),
                                   m_.direct_gradient_at(total, c), m_.weight1_transposed_at(t), m_.embedded_gradient,
                                   true);
      }
    });
    for_each(classes.count, [&](int64_t c) {
      with_vectors<T>(classes.width(c), [&]<int N>() {
        direct_.template backward_weight<N>(m_.direct_gradient_at(total, c), total.gradient + layout_.direct_weight(c),
                                            m_.in_place());
      });
    });
  }

  void scatter_embedding_gradient() const {
    const Blocks& dims = layout_.dims;
    for (int64_t row = 0; row < m_.table_rows; ++row) {
      T* out = m_.slots[0].gradient + layout_.embedding() + step_.batch.tokens[row] * dims.size;
      for (int64_t d = 0; d < dims.count; ++d) {
        const T* in = m_.embedded_gradient + m_.table_rows * dims.begin(d) + row * dims.width(d);
        for (int64_t j = 0; j < dims.used(d); ++j) out[dims.begin(d) + j] += in[j];
      }
    }
  }

 private:
  void backward_embedding(int64_t t, int64_t block) const {
    hidden_.backward_embedding(t, layout_.hidden.width(block), step_.parameters + layout_.weight1(block),
                               m_.tables_gradient_at(m_.slots[0], block), m_.weight1_transposed_at(t),
                               m_.embedded_gradient, block > 0);
  }
  void backward_weight1(int64_t block) const {
    T* gradient = m_.gradient_at(m_.slots[0], block);
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      hidden_.template backward_weight<N>(m_.tables_gradient_at(m_.slots[0], block), gradient, m_.in_place());
    });
    if (!m_.at_once()) return;
    const int64_t begin = layout_.weight1(block);
    apply<T>(*step_.update, 1, step_.parameters, gradient, begin, layout_.weight1(block + 1) - begin);
  }

  const MlpMemory<T>& m_;
  const MlpStep<T>& step_;
  const MlpLayout& layout_;
  const Projection<T> hidden_, direct_;
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
