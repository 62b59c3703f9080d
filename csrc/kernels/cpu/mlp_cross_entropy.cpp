#include "kernels/mlp_cross_entropy.h"

#include "kernels/cpu/optimizer.h"
#include "kernels/cpu/projection.h"
#include "kernels/cpu/softmax_rows.h"
#include "kernels/cpu/transpose.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

// Hands out pieces of the workspace, each aligned to a cache line.
template <typename T>
struct Arena {
  T* next;

  T* take(int64_t count) {
    T* piece = next;
    next += (count + 15) / 16 * 16;
    return piece;
  }
};

// What one group of tiles works with. Matrices are stored block by block.
template <typename T>
struct Slot {
  T* gradient;         // of the parameters
  T* tables_gradient;  // (P, H)
  T* direct_gradient;  // (P, V)
  T* hidden;           // (tile, H)
  T* z;                // (tile, V), logits and then their gradient
  T* hidden_gradient;  // (class slots, tile, H); with one class slot only the block at hand
  T* transposed;       // (class slots, H, width of a class block), weight2 transposed
  T* shift;            // (tile,)
  T* scale;            // (tile,)
  T* sum;              // (class slots, tile)
  double loss;
};

template <typename T>
class Step {
 public:
  Step(const MlpStep<T>& problem, int64_t rows, int64_t table_rows, int64_t entries)
      : p_(problem),
        layout_(problem.layout),
        tiling_(problem.layout, rows),
        table_rows_(table_rows),
        fused_(tiling_.tiles <= 1 && tiling_.class_slots == 1),
        updates_at_once_(problem.update != nullptr && problem.update->max_grad_norm == 0),
        in_place_(tiling_.tiles <= 1 && updates_at_once_ && problem.update->is_sparse()),
        step_scale_(in_place_ ? -problem.update->learning_rate : 1),
        hidden_{problem.batch, layout_.context_length, layout_.dims, nullptr, true},
        direct_{problem.batch, layout_.context_length, layout_.dims, nullptr, false} {
    Arena<T> arena{problem.workspace};
    embedded_ = arena.take(table_rows_ * (1 + layout_.embedding_dim));
    hidden_.embedded = direct_.embedded = embedded_;
    embedded_gradient_ = arena.take(table_rows_ * layout_.dims.padded());
    tables_ = arena.take(table_rows_ * layout_.hidden.padded());
    direct_tables_ = arena.take(layout_.direct ? table_rows_ * layout_.classes.padded() : 0);
    weight1_transposed_ = arena.take(layout_.context_length * kMaxVectors * kWidth<T> * layout_.dims.padded());
    target_logits_ = problem.entry_losses != nullptr ? problem.entry_losses : arena.take(entries);
    for (int64_t s = 0; s < tiling_.slots; ++s) slots_[s] = make_slot(&arena, s);
    workspace_end_ = arena.next;
  }

  const T* workspace_end() const { return workspace_end_; }

  double run() {
    gather_embeddings();
    if (!fused_) p_.parallel(layout_.hidden.count, [&](int64_t block) { project(block); });
    if (layout_.direct) p_.parallel(layout_.classes.count, [&](int64_t c) { project_direct(c); });
    p_.parallel(tiling_.slots, [&](int64_t s) {
      const int64_t first = tiling_.tiles * s / tiling_.slots, last = tiling_.tiles * (s + 1) / tiling_.slots;
      slots_[s].loss = 0;
      for (int64_t tile = first; tile < last; ++tile) run_tile(&slots_[s], tile, tile == first);
    });
    double loss = 0;
    for (int64_t s = 0; s < tiling_.slots; ++s) loss += slots_[s].loss;
    if (p_.gradient != nullptr) {
      if (tiling_.slots > 1) add_slots();
      if (!fused_) backward_first_layer();
      if (layout_.direct) backward_direct_layer();
      scatter_embedding_gradient();
      if (p_.update != nullptr) finish_update();
    }
    return loss;
  }

 private:
  Slot<T> make_slot(Arena<T>* arena, int64_t s) const {
    const int64_t tile = tiling_.tile_rows, hidden = layout_.hidden.padded(), classes = layout_.classes.padded();
    Slot<T> slot;
    slot.gradient = s > 0 ? arena->take(layout_.size()) : in_place_ ? p_.parameters : p_.gradient;
    slot.tables_gradient = arena->take(table_rows_ * hidden);
    slot.direct_gradient = arena->take(layout_.direct ? table_rows_ * classes : 0);
    slot.hidden = arena->take(tile * hidden);
    slot.z = arena->take(tile * classes);
    slot.hidden_gradient = arena->take(tiling_.class_slots * tile * hidden);
    slot.transposed = arena->take(tiling_.class_slots * hidden * kMaxVectors * kWidth<T>);
    slot.shift = arena->take(tile);
    slot.scale = arena->take(tile);
    slot.sum = arena->take(tiling_.class_slots * tile);
    return slot;
  }

  // Where the tables of a block are: where each block is done with before the next, all share one place in cache.
  T* tables(int64_t block) const { return tables_ + (fused_ ? 0 : table_rows_ * layout_.hidden.begin(block)); }
  T* tables_gradient(const Slot<T>& slot, int64_t block) const {
    return slot.tables_gradient + (fused_ ? 0 : table_rows_ * layout_.hidden.begin(block));
  }
  // The gradient of a block's weights, bias1 first. One that is used at once is not kept.
  T* gradient(const Slot<T>& slot, int64_t block) const {
    return slot.gradient + (fused_ && updates_at_once_ && !in_place_ ? 0 : layout_.weight1(block));
  }
  T* gradient_weight2(const Slot<T>& slot, int64_t block) const {
    return gradient(slot, block) + layout_.weight2(block) - layout_.weight1(block);
  }
  T* hidden(const Slot<T>& slot, int64_t block) const {
    return slot.hidden + tiling_.tile_rows * layout_.hidden.begin(block);
  }
  T* hidden_gradient(const Slot<T>& slot, int64_t class_slot, int64_t block) const {
    if (tiling_.class_slots == 1) return slot.hidden_gradient;
    return slot.hidden_gradient +
           tiling_.tile_rows * (class_slot * layout_.hidden.padded() + layout_.hidden.begin(block));
  }
  int64_t class_block(int64_t class_slot) const { return layout_.classes.count * class_slot / tiling_.class_slots; }

  SoftmaxTile<T> softmax_tile(const Slot<T>& slot, int64_t tile) const {
    const int64_t first = tile * tiling_.tile_rows, left = p_.batch.rows - first;
    return {p_.batch,          layout_.classes, p_.softcap, first, left < tiling_.tile_rows ? left : tiling_.tile_rows,
            tiling_.tile_rows, slot.z};
  }

  void gather_embeddings() const {
    const int64_t dim = layout_.embedding_dim;
    const T* embedding = p_.parameters + layout_.embedding();
    for (int64_t row = 0; row < table_rows_; ++row) {
      T* out = embedded_ + row * (1 + dim);
      const T* in = embedding + p_.batch.tokens[row] * dim;
      out[0] = 1;
      for (int64_t d = 0; d < dim; ++d) out[1 + d] = in[d];
    }
  }

  void project(int64_t block) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      hidden_.template project<N>(p_.parameters + layout_.weight1(block), tables(block));
    });
  }
  void project_direct(int64_t c) const {
    with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
      direct_.template project<N>(p_.parameters + layout_.direct_weight(c),
                                  direct_tables_ + table_rows_ * layout_.classes.begin(c));
    });
  }

  void run_tile(Slot<T>* slot, int64_t tile_index, bool is_first) {
    const SoftmaxTile<T> tile = softmax_tile(*slot, tile_index);
    if (tiling_.class_slots == 1) {
      for (int64_t c = 0; c < layout_.classes.count; ++c) start_logits(tile, c);
      for (int64_t block = 0; block < layout_.hidden.count; ++block) {
        if (fused_) project(block);
        forward_hidden(*slot, tile, block);
        for (int64_t c = 0; c < layout_.classes.count; ++c) add_logits(*slot, tile, 0, c, block, is_first);
      }
    } else {
      p_.parallel(layout_.hidden.count, [&](int64_t block) { forward_hidden(*slot, tile, block); });
      p_.parallel(tiling_.class_slots, [&](int64_t s) {
        for (int64_t c = class_block(s); c < class_block(s + 1); ++c) {
          start_logits(tile, c);
          for (int64_t block = 0; block < layout_.hidden.count; ++block) add_logits(*slot, tile, s, c, block, true);
        }
      });
    }
    forward_softmax(slot, tile);
    if (p_.gradient == nullptr) return finish_loss(slot, tile);

    p_.parallel(tiling_.class_slots,
                [&](int64_t s) { tile.backward(class_block(s), class_block(s + 1), slot->shift, slot->scale); });
    tile.backward_targets(target_logits_, step_scale_);
    finish_loss(slot, tile);
    if (tiling_.class_slots == 1) {
      backward_bias2(*slot, tile, 0, layout_.classes.count, is_first);
      for (int64_t block = 0; block < layout_.hidden.count; ++block) {
        for (int64_t c = 0; c < layout_.classes.count; ++c) {
          backward_class_block(*slot, tile, 0, block, c, is_first);
        }
        backward_hidden(*slot, tile, block, is_first);
        if (!fused_) continue;
        for (int64_t t = 0; t < layout_.context_length; ++t) backward_embedding(t, block);
        backward_weight1(block);
      }
    } else {
      p_.parallel(tiling_.class_slots, [&](int64_t s) {
        backward_bias2(*slot, tile, class_block(s), class_block(s + 1), is_first);
        for (int64_t c = class_block(s); c < class_block(s + 1); ++c) {
          for (int64_t block = 0; block < layout_.hidden.count; ++block) {
            backward_class_block(*slot, tile, s, block, c, is_first);
          }
        }
      });
      p_.parallel(layout_.hidden.count, [&](int64_t block) { backward_hidden(*slot, tile, block, is_first); });
    }
    if (layout_.direct) backward_direct(*slot, tile, is_first);
  }

  void forward_hidden(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t block) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      T* out = hidden(slot, block);
      hidden_.template gather<N>(tables(block), tile.first, tile.first + tile.rows, [&](const Vec<T>(&sum)[N]) {
        for (int n = 0; n < N; ++n) store(out + n * kWidth<T>, tanh(sum[n]));
        out += N * kWidth<T>;
      });
    });
  }

  // bias2 and the direct connection.
  void start_logits(const SoftmaxTile<T>& tile, int64_t c) const {
    with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
      const T* bias = p_.parameters + layout_.bias2() + layout_.classes.begin(c);
      T* z = tile.chunk(c);
      const auto add_bias = [&](const Vec<T>(&sum)[N]) {
        for (int n = 0; n < N; ++n) store(z + n * kWidth<T>, sum[n] + load(bias + n * kWidth<T>));
        z += N * kWidth<T>;
      };
      if (layout_.direct) {
        direct_.template gather<N>(direct_tables_ + table_rows_ * layout_.classes.begin(c), tile.first,
                                   tile.first + tile.rows, add_bias);
      } else {
        for (int64_t r = 0; r < tile.rows; ++r) add_bias({});
      }
    });
  }

  // One block of logits += h W2^T over one block of the hidden dimension. With one block of classes the transposed
  // weights stay where they are for all tiles.
  void add_logits(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t c, int64_t block,
                  bool is_first) const {
    const Blocks& hidden_blocks = layout_.hidden;
    with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
      const int64_t width = N * kWidth<T>, hidden_width = hidden_blocks.width(block);
      T* weight = slot.transposed + class_slot * hidden_blocks.padded() * kMaxVectors * kWidth<T> +
                  hidden_blocks.begin(block) * width;
      if (is_first || layout_.classes.count > 1) {
        transpose(p_.parameters + layout_.weight2(block) + layout_.classes.begin(c) * hidden_width,
                  layout_.classes.used(c), hidden_width, weight, width);
      }
      multiply<N>(tile.rows, hidden_blocks.used(block), Left<T, false>{hidden(slot, block), hidden_width}, weight,
                  tile.chunk(c), true);
    });
  }

  // Leaves exponentials (logits, with a softcap), each row's shift and sum, and the logits of the targets.
  void forward_softmax(Slot<T>* slot, const SoftmaxTile<T>& tile) const {
    const int64_t stride = tiling_.tile_rows;
    bool small[kMaxClassSlots];
    p_.parallel(tiling_.class_slots, [&](int64_t s) {
      if (p_.softcap != 0) tile.cap(class_block(s), class_block(s + 1));
      small[s] = tile.is_small(class_block(s), class_block(s + 1));
    });
    tile.target_logits(target_logits_);
    for (int64_t s = 1; s < tiling_.class_slots; ++s) small[0] &= small[s];
    if (small[0]) {
      fill_zero(slot->shift, tile.rows);
    } else {
      p_.parallel(tiling_.class_slots,
                  [&](int64_t s) { tile.row_maximum(class_block(s), class_block(s + 1), slot->sum + s * stride); });
      for (int64_t r = 0; r < tile.rows; ++r) {
        T largest = slot->sum[r];
        for (int64_t s = 1; s < tiling_.class_slots; ++s) {
          largest = slot->sum[s * stride + r] > largest ? slot->sum[s * stride + r] : largest;
        }
        slot->shift[r] = largest;
      }
    }
    p_.parallel(tiling_.class_slots, [&](int64_t s) {
      tile.exponentials(class_block(s), class_block(s + 1), slot->shift, slot->sum + s * stride);
    });
    for (int64_t r = 0; r < tile.rows; ++r) {
      for (int64_t s = 1; s < tiling_.class_slots; ++s) slot->sum[r] += slot->sum[s * stride + r];
      slot->scale[r] = step_scale_ * tile.row_weight(r) / slot->sum[r];
    }
  }

  // Adds the tile's loss; target logits become the entries' losses. Overwrites the scales.
  void finish_loss(Slot<T>* slot, const SoftmaxTile<T>& tile) const {
    T* log_sum = slot->scale;
    for (int64_t r = 0; r < tile.rows; r += kWidth<T>) store(log_sum + r, log(load(slot->sum + r)));
    slot->loss += tile.losses(slot->shift, log_sum, target_logits_);
  }

  void backward_bias2(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t begin, int64_t end,
                      bool is_first) const {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t width = layout_.classes.width(c);
      T* out = slot.gradient + layout_.bias2() + layout_.classes.begin(c);
      for (int64_t j = 0; j < width; j += kWidth<T>) {
        Vec<T> sum = is_first && !in_place_ ? Vec<T>{} : load(out + j);
        for (int64_t r = 0; r < tile.rows; ++r) sum += load(tile.chunk(c) + r * width + j);
        store(out + j, sum);
      }
    }
  }

  // d h (+)= dz W2, then d W2 (+)= dz^T h, for one block of classes and one of the hidden dimension.
  void backward_class_block(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t block,
                            int64_t c, bool is_first) const {
    const int64_t class_width = layout_.classes.width(c), used = layout_.classes.used(c);
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      const int64_t offset = layout_.classes.begin(c) * N * kWidth<T>;
      multiply<N>(tile.rows, used, Left<T, false>{tile.chunk(c), class_width},
                  p_.parameters + layout_.weight2(block) + offset, hidden_gradient(slot, class_slot, block),
                  c != class_block(class_slot));
      multiply<N>(used, tile.rows, Left<T, true>{tile.chunk(c), class_width}, hidden(slot, block),
                  gradient_weight2(slot, block) + offset, in_place_ || !is_first);
    });
  }

  // d pre = d h (1 - h^2), added to the tables' gradient.
  void backward_hidden(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t block, bool is_first) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      const int64_t width = N * kWidth<T>;
      T* out = tables_gradient(slot, block);
      if (is_first) fill_zero(out, table_rows_ * width);
      const T* h = hidden(slot, block);
      const T* in = hidden_gradient(slot, 0, block);
      for (int64_t r = 0; r < tile.rows; ++r) {
        Vec<T> gradient[N];
        for (int n = 0; n < N; ++n) {
          const int64_t i = r * width + n * kWidth<T>;
          Vec<T> g = load(in + i);
          for (int64_t s = 1; s < tiling_.class_slots; ++s) {
            g += load(in + s * tiling_.tile_rows * layout_.hidden.padded() + i);
          }
          gradient[n] = g * (1 - load(h + i) * load(h + i));
        }
        hidden_.template scatter<N>(tile.first + r, gradient, out);
      }
    });
  }

  void backward_direct(const Slot<T>& slot, const SoftmaxTile<T>& tile, bool is_first) const {
    p_.parallel(tiling_.class_slots, [&](int64_t s) {
      for (int64_t c = class_block(s); c < class_block(s + 1); ++c) {
        with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
          T* out = slot.direct_gradient + table_rows_ * layout_.classes.begin(c);
          if (is_first) fill_zero(out, table_rows_ * N * kWidth<T>);
          for (int64_t r = 0; r < tile.rows; ++r) {
            Vec<T> gradient[N];
            for (int n = 0; n < N; ++n) gradient[n] = load(tile.chunk(c) + (r * N + n) * kWidth<T>);
            direct_.template scatter<N>(tile.first + r, gradient, out);
          }
        });
      }
    });
  }

  // Sums the slots' gradients into slot 0's.
  void add_slots() const {
    p_.parallel(layout_.hidden.count, [&](int64_t block) {
      const int64_t width = layout_.hidden.width(block);
      add_slots_at(&Slot<T>::tables_gradient, table_rows_ * layout_.hidden.begin(block), table_rows_ * width);
      add_slots_at(&Slot<T>::gradient, layout_.weight2(block), layout_.vocab_size * width);
    });
    add_slots_at(&Slot<T>::gradient, layout_.bias2(), layout_.classes.padded());
    if (layout_.direct) add_slots_at(&Slot<T>::direct_gradient, 0, table_rows_ * layout_.classes.padded());
  }
  void add_slots_at(T* Slot<T>::* member, int64_t offset, int64_t count) const {
    for (int64_t i = offset; i < offset + count; i += kWidth<T>) {
      Vec<T> sum = load(slots_[0].*member + i);
      for (int64_t s = 1; s < tiling_.slots; ++s) sum += load(slots_[s].*member + i);
      store(slots_[0].*member + i, sum);
    }
  }

  // The first layer's gradients from the tables'. The embedding's come before the weights they read are updated.
  void backward_first_layer() const {
    p_.parallel(layout_.context_length, [&](int64_t t) {
      for (int64_t block = 0; block < layout_.hidden.count; ++block) backward_embedding(t, block);
    });
    p_.parallel(layout_.hidden.count, [&](int64_t block) { backward_weight1(block); });
  }
  void backward_embedding(int64_t t, int64_t block) const {
    hidden_.backward_embedding(t, layout_.hidden.width(block), p_.parameters + layout_.weight1(block),
                               tables_gradient(slots_[0], block), weight1_transposed(t), embedded_gradient_, block > 0);
  }
  void backward_weight1(int64_t block) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      hidden_.template backward_weight<N>(tables_gradient(slots_[0], block), gradient(slots_[0], block), in_place_);
    });
    if (updates_at_once_ && !in_place_) {
      const int64_t begin = layout_.weight1(block);
      apply<T>(*p_.update, 1, p_.parameters, gradient(slots_[0], block), begin, layout_.weight1(block + 1) - begin);
    }
  }
  T* weight1_transposed(int64_t t) const {
    return weight1_transposed_ + t * kMaxVectors * kWidth<T> * layout_.dims.padded();
  }

  void backward_direct_layer() const {
    const Blocks& classes = layout_.classes;
    const T* tables = slots_[0].direct_gradient;
    p_.parallel(layout_.context_length, [&](int64_t t) {
      for (int64_t c = 0; c < classes.count; ++c) {
        direct_.backward_embedding(t, classes.width(c), p_.parameters + layout_.direct_weight(c),
                                   tables + table_rows_ * classes.begin(c), weight1_transposed(t), embedded_gradient_,
                                   true);
      }
    });
    p_.parallel(classes.count, [&](int64_t c) {
      with_vectors<T>(classes.width(c), [&]<int N>() {
        direct_.template backward_weight<N>(tables + table_rows_ * classes.begin(c),
                                            slots_[0].gradient + layout_.direct_weight(c), in_place_);
      });
    });
  }

  void scatter_embedding_gradient() const {
    const Blocks& dims = layout_.dims;
    for (int64_t row = 0; row < table_rows_; ++row) {
      T* out = slots_[0].gradient + layout_.embedding() + p_.batch.tokens[row] * dims.size;
      for (int64_t d = 0; d < dims.count; ++d) {
        const T* in = embedded_gradient_ + table_rows_ * dims.begin(d) + row * dims.width(d);
        for (int64_t j = 0; j < dims.used(d); ++j) out[dims.begin(d) + j] += in[j];
      }
    }
  }

  // The parameters that are not yet updated: all of them where the norm had to be known first.
  void finish_update() const {
    if (in_place_) return;
    const int64_t embedding = layout_.embedding(), bias2 = layout_.bias2();
    const T scale = clip_scale(*p_.update, p_.gradient, layout_.size());
    if (!updates_at_once_) {
      p_.parallel(layout_.hidden.count,
                  [&](int64_t block) { update(layout_.weight1(block), layout_.weight1(block + 1), scale); });
    }
    update(bias2, layout_.size(), scale);
    if (p_.update->is_sparse()) return update_embedding_rows(scale);
    update(embedding, bias2, scale);
    fill_zero(p_.gradient + embedding, bias2 - embedding);
  }
  void update(int64_t begin, int64_t end, T scale) const {
    apply(*p_.update, scale, p_.parameters, p_.gradient + begin, begin, end - begin);
  }
  // Only the tokens present: each is updated and its gradient cleared at its first table row.
  void update_embedding_rows(T scale) const {
    const int64_t dim = layout_.embedding_dim;
    for (int64_t row = 0; row < table_rows_; ++row) {
      const int64_t offset = layout_.embedding() + p_.batch.tokens[row] * dim;
      for (int64_t d = 0; d < dim; ++d) {
        p_.parameters[offset + d] -= p_.update->learning_rate * scale * p_.gradient[offset + d];
        p_.gradient[offset + d] = 0;
      }
    }
  }

  static void fill_zero(T* values, int64_t count) { __builtin_memset(values, 0, count * sizeof(T)); }

  static constexpr int64_t kMaxSlots = 8, kMaxClassSlots = 8;

  const MlpStep<T>& p_;
  const MlpLayout& layout_;
  const MlpTiling tiling_;
  const int64_t table_rows_;
  const bool fused_;            // one tile, one class slot: all of a block is done while it is in cache
  const bool updates_at_once_;  // no norm of the whole gradient is needed first
  const bool in_place_;         // plain SGD on one tile: its gradients, times -learning_rate, go into the parameters
  const T step_scale_;          // of every gradient
  Projection<T> hidden_, direct_;
  T *embedded_, *embedded_gradient_, *tables_, *direct_tables_, *weight1_transposed_, *target_logits_;
  T* workspace_end_;
  Slot<T> slots_[kMaxSlots];
};

template <typename T>
MlpLayout make_layout(int64_t vocab_size, int64_t context_length, int64_t embedding_dim, int64_t hidden_dim,
                      bool direct) {
  const auto blocks = [](int64_t size) { return Blocks(size, kWidth<T>, kMaxVectors); };
  return {vocab_size, context_length,     embedding_dim,      hidden_dim,
          direct,     blocks(hidden_dim), blocks(vocab_size), blocks(embedding_dim)};
}

template <typename T>
int64_t workspace(const MlpLayout& layout, int64_t rows, int64_t table_rows, int64_t entries) {
  MlpStep<T> problem;  // laid out from address 0
  problem.layout = layout;
  return Step<T>(problem, rows, table_rows, entries).workspace_end() - static_cast<T*>(nullptr);
}

template <typename T>
double step(const MlpStep<T>& problem) {
  const MlpBatch<T>& batch = problem.batch;
  return Step<T>(problem, batch.rows, batch.table_rows(problem.layout.context_length), batch.entry_begin[batch.rows])
      .run();
}

}  // namespace

template <>
MlpKernels<float> kernels() {
  return {make_layout<float>, workspace<float>, step<float>};
}
template <>
MlpKernels<double> kernels() {
  return {make_layout<double>, workspace<double>, step<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
