#include "kernels/mlp.h"

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

// What one group of tiles works with.
template <typename T>
struct Slot {
  T* gradient;         // slot 0: the step's
  T* tables_gradient;  // (P, H)
  T* direct_gradient;  // (P, V)
  T* hidden;           // (tile, H)
  T* z;                // (tile, V)
  T* hidden_gradient;  // (class slots, tile, H); with one class slot (tile, width) of the block at hand
  T* transposed;       // (class slots, H, width of a class block)
  T* shift;            // (tile,)
  T* scale;            // (tile,)
  T* partial;          // (class slots, tile)
  double loss;
};

template <typename T>
class Step {
 public:
  Step(const MlpStep<T>& problem, int64_t rows, int64_t table_rows, int64_t entries)
      : p_(problem), layout_(problem.layout), tiling_(problem.layout, rows), table_rows_(table_rows) {
    Arena<T> arena{problem.workspace};
    embedded_ = arena.take(table_rows_ * (1 + layout_.embedding_dim));
    embedded_gradient_ = arena.take(table_rows_ * layout_.embedding_dim);
    tables_ = arena.take(table_rows_ * layout_.hidden.padded());
    direct_tables_ = arena.take(layout_.direct ? table_rows_ * layout_.classes.padded() : 0);
    target_logits_ = problem.entry_losses != nullptr ? problem.entry_losses : arena.take(entries);
    for (int64_t s = 0; s < tiling_.slots; ++s) slots_[s] = make_slot(&arena, s);
    workspace_end_ = arena.next;
  }

  const T* workspace_end() const { return workspace_end_; }

  double run() {
    forward_tables();
    p_.parallel(tiling_.slots, [&](int64_t s) {
      const int64_t first = tiling_.tiles * s / tiling_.slots, last = tiling_.tiles * (s + 1) / tiling_.slots;
      slots_[s].loss = 0;
      for (int64_t tile = first; tile < last; ++tile) run_tile(&slots_[s], tile, tile == first);
    });
    double loss = 0;
    for (int64_t s = 0; s < tiling_.slots; ++s) loss += slots_[s].loss;
    if (p_.gradient != nullptr) {
      add_slots();
      backward_embedding();
      backward_weights();
      if (p_.update != nullptr) finish_update();
    }
    return loss;
  }

 private:
  Slot<T> make_slot(Arena<T>* arena, int64_t s) {
    const int64_t tile = tiling_.tile_rows, hidden = layout_.hidden.padded(), classes = layout_.classes.padded();
    const bool direct = layout_.direct;
    Slot<T> slot;
    slot.gradient = s == 0 ? p_.gradient : arena->take(layout_.size());
    slot.tables_gradient = arena->take(table_rows_ * hidden);
    slot.direct_gradient = arena->take(direct ? table_rows_ * classes : 0);
    slot.hidden = arena->take(tile * hidden);
    slot.z = arena->take(tile * classes);
    slot.hidden_gradient = arena->take(tiling_.class_slots * tile * hidden);
    slot.transposed = arena->take(tiling_.class_slots * hidden * kMaxVectors * kWidth<T>);
    slot.shift = arena->take(tile);
    slot.scale = arena->take(tile);
    slot.partial = arena->take(tiling_.class_slots * tile);
    return slot;
  }

  Projection<T> hidden_projection() const {
    return {p_.batch,
            layout_.hidden,
            layout_.context_length,
            layout_.embedding_dim,
            embedded_,
            p_.parameters,
            p_.gradient,
            layout_.hidden_rows(),
            true};
  }
  Projection<T> direct_projection() const {
    const int64_t offset = layout_.direct_weight(0);
    return {p_.batch,
            layout_.classes,
            layout_.context_length,
            layout_.embedding_dim,
            embedded_,
            p_.parameters + offset,
            p_.gradient == nullptr ? nullptr : p_.gradient + offset,
            layout_.inputs(),
            false};
  }

  void forward_tables() {
    const int64_t dim = layout_.embedding_dim;
    const T* embedding = p_.parameters + layout_.embedding();
    for (int64_t row = 0; row < table_rows_; ++row) {
      T* out = embedded_ + row * (1 + dim);
      const T* in = embedding + p_.batch.tokens[row] * dim;
      out[0] = 1;
      for (int64_t d = 0; d < dim; ++d) out[1 + d] = in[d];
    }
    p_.parallel(layout_.hidden.count, [&](int64_t block) {
      with_vectors<T>(layout_.hidden.width(block),
                      [&]<int N>() { hidden_projection().template project<N>(block, tables_); });
    });
    if (!layout_.direct) return;
    p_.parallel(layout_.classes.count, [&](int64_t block) {
      with_vectors<T>(layout_.classes.width(block),
                      [&]<int N>() { direct_projection().template project<N>(block, direct_tables_); });
    });
  }

  SoftmaxTile<T> softmax_tile(const Slot<T>& slot, int64_t tile) const {
    const int64_t first = tile * tiling_.tile_rows, left = p_.batch.rows - first;
    return {p_.batch,          layout_.classes, p_.softcap, first, left < tiling_.tile_rows ? left : tiling_.tile_rows,
            tiling_.tile_rows, slot.z};
  }
  int64_t class_block(int64_t class_slot) const { return layout_.classes.count * class_slot / tiling_.class_slots; }

  void run_tile(Slot<T>* slot, int64_t tile, bool is_first) {
    const SoftmaxTile<T> softmax = softmax_tile(*slot, tile);
    p_.parallel(tiling_.class_slots == 1 ? 1 : layout_.hidden.count, [&](int64_t block) {
      if (tiling_.class_slots > 1) return forward_hidden(*slot, softmax, block);
      for (int64_t b = 0; b < layout_.hidden.count; ++b) forward_hidden(*slot, softmax, b);
    });
    forward_classes(slot, softmax);
    if (p_.gradient == nullptr) return;
    softmax.backward_targets(target_logits_);
    if (tiling_.class_slots == 1) {
      backward_bias2(*slot, softmax, 0, layout_.classes.count, is_first);
      for (int64_t block = 0; block < layout_.hidden.count; ++block) {
        for (int64_t c = 0; c < layout_.classes.count; ++c) {
          backward_class_block(*slot, softmax, 0, block, c, c == 0, is_first);
        }
        backward_hidden(*slot, softmax, block, is_first);
      }
    } else {
      p_.parallel(tiling_.class_slots, [&](int64_t s) {
        backward_bias2(*slot, softmax, class_block(s), class_block(s + 1), is_first);
        for (int64_t c = class_block(s); c < class_block(s + 1); ++c) {
          for (int64_t block = 0; block < layout_.hidden.count; ++block) {
            backward_class_block(*slot, softmax, s, block, c, c == class_block(s), is_first);
          }
        }
      });
      p_.parallel(layout_.hidden.count, [&](int64_t block) { backward_hidden(*slot, softmax, block, is_first); });
    }
    if (layout_.direct) backward_direct(*slot, softmax, is_first);
    finish_loss(slot, softmax);
  }

  void forward_hidden(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t block) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      T* out = slot.hidden + tiling_.tile_rows * layout_.hidden.begin(block);
      hidden_projection().template gather<N>(block, tables_, tile.first, tile.first + tile.rows,
                                             [&](int64_t, const Vec<T>(&sum)[N]) {
                                               for (int n = 0; n < N; ++n) store(out + n * kWidth<T>, tanh(sum[n]));
                                               out += N * kWidth<T>;
                                             });
    });
  }

  // The logits of one block of classes.
  void forward_class_block(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t c) const {
    const Blocks& hidden = layout_.hidden;
    const Blocks& classes = layout_.classes;
    T* transposed = slot.transposed + class_slot * hidden.padded() * kMaxVectors * kWidth<T>;
    with_vectors<T>(classes.width(c), [&]<int N>() {
      const int64_t width = N * kWidth<T>;
      const T* bias = p_.parameters + layout_.bias2() + classes.begin(c);
      T* z = tile.chunk(c);
      if (layout_.direct) {
        T* out = z;
        direct_projection().template gather<N>(c, direct_tables_, tile.first, tile.first + tile.rows,
                                               [&](int64_t, const Vec<T>(&sum)[N]) {
                                                 for (int n = 0; n < N; ++n)
                                                   store(out + n * kWidth<T>, sum[n] + load(bias + n * kWidth<T>));
                                                 out += width;
                                               });
      } else {
        for (int64_t r = 0; r < tile.rows; ++r) {
          for (int n = 0; n < N; ++n) store(z + r * width + n * kWidth<T>, load(bias + n * kWidth<T>));
        }
      }
      for (int64_t block = 0; block < hidden.count; ++block) {
        const int64_t hidden_width = hidden.width(block);
        transpose(p_.parameters + layout_.weight2(block) + classes.begin(c) * hidden_width, classes.used(c),
                  hidden_width, transposed, width);
        multiply<N>(tile.rows, hidden.used(block),
                    Left<T, false>{slot.hidden + tiling_.tile_rows * hidden.begin(block), hidden_width}, transposed, z,
                    true);
      }
    });
  }

  // Logits to d loss / d logits, but for the targets' part; the loss.
  void forward_classes(Slot<T>* slot, const SoftmaxTile<T>& tile) {
    bool small[kMaxClassSlots];
    p_.parallel(tiling_.class_slots, [&](int64_t s) {
      const int64_t begin = class_block(s), end = class_block(s + 1);
      for (int64_t c = begin; c < end; ++c) forward_class_block(*slot, tile, s, c);
      if (p_.softcap != 0) tile.cap(begin, end);
      small[s] = tile.is_small(begin, end);
    });
    tile.target_logits(target_logits_);
    for (int64_t s = 1; s < tiling_.class_slots; ++s) small[0] &= small[s];
    if (small[0]) {
      for (int64_t r = 0; r < tile.rows; ++r) slot->shift[r] = 0;
    } else {
      p_.parallel(tiling_.class_slots, [&](int64_t s) {
        tile.row_maximum(class_block(s), class_block(s + 1), slot->partial + s * tiling_.tile_rows);
      });
      for (int64_t r = 0; r < tile.rows; ++r) {
        slot->shift[r] = slot->partial[r];
        for (int64_t s = 1; s < tiling_.class_slots; ++s) {
          const T other = slot->partial[s * tiling_.tile_rows + r];
          slot->shift[r] = other > slot->shift[r] ? other : slot->shift[r];
        }
      }
    }
    p_.parallel(tiling_.class_slots, [&](int64_t s) {
      tile.exponentials(class_block(s), class_block(s + 1), slot->shift, slot->partial + s * tiling_.tile_rows);
    });
    for (int64_t r = 0; r < tile.rows; ++r) {
      T sum = slot->partial[r];
      for (int64_t s = 1; s < tiling_.class_slots; ++s) sum += slot->partial[s * tiling_.tile_rows + r];
      slot->partial[r] = sum;
      slot->scale[r] = tile.row_weight(r) / sum;
    }
    if (p_.gradient == nullptr) return finish_loss(slot, tile);
    p_.parallel(tiling_.class_slots,
                [&](int64_t s) { tile.backward(class_block(s), class_block(s + 1), slot->shift, slot->scale); });
  }

  // Adds the tile's loss; target logits become the entries' losses.
  void finish_loss(Slot<T>* slot, const SoftmaxTile<T>& tile) const {
    for (int64_t r = 0; r < tile.rows; r += kWidth<T>) {
      store(slot->scale + r, log(load(slot->partial + r)));
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T log_sum = slot->scale[r];
      for (int64_t e = p_.batch.entry_begin[tile.first + r]; e < p_.batch.entry_begin[tile.first + r + 1]; ++e) {
        target_logits_[e] = log_sum - (target_logits_[e] - slot->shift[r]);
        slot->loss += (double)(tile.weight(e) * target_logits_[e]);
      }
    }
  }

  void backward_bias2(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t begin, int64_t end,
                      bool is_first) const {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t width = layout_.classes.width(c);
      T* out = slot.gradient + layout_.bias2() + layout_.classes.begin(c);
      for (int64_t j = 0; j < width; j += kWidth<T>) {
        Vec<T> sum = is_first ? Vec<T>{} : load(out + j);
        for (int64_t r = 0; r < tile.rows; ++r) sum += load(tile.chunk(c) + r * width + j);
        store(out + j, sum);
      }
    }
  }

  // d h (+)= dz W2 and d W2 (+)= dz^T h, for one block of classes and one of the hidden dimension.
  void backward_class_block(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t class_slot, int64_t block,
                            int64_t c, bool first_classes, bool is_first) const {
    const int64_t class_width = layout_.classes.width(c), used = layout_.classes.used(c);
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      const int64_t offset = layout_.weight2(block) + layout_.classes.begin(c) * N * kWidth<T>;
      multiply<N>(tile.rows, used, Left<T, false>{tile.chunk(c), class_width}, p_.parameters + offset,
                  hidden_gradient(slot, class_slot, block), !first_classes);
      multiply<N>(used, tile.rows, Left<T, true>{tile.chunk(c), class_width},
                  slot.hidden + tiling_.tile_rows * layout_.hidden.begin(block), slot.gradient + offset, !is_first);
    });
  }
  T* hidden_gradient(const Slot<T>& slot, int64_t class_slot, int64_t block) const {
    if (tiling_.class_slots == 1) return slot.hidden_gradient;
    return slot.hidden_gradient +
           tiling_.tile_rows * (class_slot * layout_.hidden.padded() + layout_.hidden.begin(block));
  }

  // d pre = d h (1 - h^2), added to the tables' gradient.
  void backward_hidden(const Slot<T>& slot, const SoftmaxTile<T>& tile, int64_t block, bool is_first) const {
    with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
      const Projection<T> projection = hidden_projection();
      const int64_t width = N * kWidth<T>;
      T* chunk = slot.tables_gradient + table_rows_ * layout_.hidden.begin(block);
      if (is_first) fill_zero(chunk, table_rows_ * width);
      const T* hidden = slot.hidden + tiling_.tile_rows * layout_.hidden.begin(block);
      const T* in = hidden_gradient(slot, 0, block);
      for (int64_t r = 0; r < tile.rows; ++r) {
        Vec<T> gradient[N];
        for (int n = 0; n < N; ++n) {
          const int64_t i = r * width + n * kWidth<T>;
          Vec<T> g = load(in + i);
          for (int64_t s = 1; s < tiling_.class_slots; ++s) {
            g += load(in + s * tiling_.tile_rows * layout_.hidden.padded() + i);
          }
          const Vec<T> h = load(hidden + i);
          gradient[n] = g * (1 - h * h);
        }
        projection.template scatter<N>(chunk, tile.first + r, gradient);
      }
    });
  }

  void backward_direct(const Slot<T>& slot, const SoftmaxTile<T>& tile, bool is_first) const {
    p_.parallel(tiling_.class_slots, [&](int64_t s) {
      for (int64_t c = class_block(s); c < class_block(s + 1); ++c) {
        with_vectors<T>(layout_.classes.width(c), [&]<int N>() {
          T* chunk = slot.direct_gradient + table_rows_ * layout_.classes.begin(c);
          if (is_first) fill_zero(chunk, table_rows_ * N * kWidth<T>);
          for (int64_t r = 0; r < tile.rows; ++r) {
            Vec<T> gradient[N];
            for (int n = 0; n < N; ++n) gradient[n] = load(tile.chunk(c) + (r * N + n) * kWidth<T>);
            direct_projection().template scatter<N>(chunk, tile.first + r, gradient);
          }
        });
      }
    });
  }

  // Sums the slots' gradients into slot 0's.
  void add_slots() const {
    if (tiling_.slots == 1) return;
    p_.parallel(layout_.hidden.count, [&](int64_t block) {
      const int64_t width = layout_.hidden.width(block);
      const int64_t tables = table_rows_ * layout_.hidden.begin(block), weight2 = layout_.weight2(block);
      add_slots_at(&Slot<T>::tables_gradient, tables, table_rows_ * width);
      add_slots_at(&Slot<T>::gradient, weight2, layout_.vocab_size * width);
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

  void backward_embedding() const {
    const int64_t dim = layout_.embedding_dim;
    p_.parallel(layout_.context_length, [&](int64_t t) {
      const int64_t first = p_.batch.position_begin[t], last = p_.batch.position_begin[t + 1];
      fill_zero(embedded_gradient_ + first * dim, (last - first) * dim);
      hidden_projection().backward_embedding(t, slots_[0].tables_gradient, embedded_gradient_);
      if (layout_.direct) direct_projection().backward_embedding(t, slots_[0].direct_gradient, embedded_gradient_);
    });
    T* gradient = p_.gradient + layout_.embedding();
    for (int64_t row = 0; row < table_rows_; ++row) {
      T* out = gradient + p_.batch.tokens[row] * dim;
      for (int64_t d = 0; d < dim; ++d) out[d] += embedded_gradient_[row * dim + d];
    }
  }

  // d weight1 and d direct_weight; each block of parameters is updated as soon as its gradient is known.
  void backward_weights() const {
    p_.parallel(layout_.hidden.count, [&](int64_t block) {
      with_vectors<T>(layout_.hidden.width(block), [&]<int N>() {
        hidden_projection().template backward_weight<N>(block, slots_[0].tables_gradient);
      });
      if (updates_at_once()) update(layout_.weight1(block), layout_.weight1(block + 1), 1);
    });
    if (!layout_.direct) return;
    p_.parallel(layout_.classes.count, [&](int64_t block) {
      with_vectors<T>(layout_.classes.width(block), [&]<int N>() {
        direct_projection().template backward_weight<N>(block, slots_[0].direct_gradient);
      });
      if (updates_at_once()) update(layout_.direct_weight(block), layout_.direct_weight(block + 1), 1);
    });
  }

  bool updates_at_once() const { return p_.update != nullptr && p_.update->max_grad_norm == 0; }
  void update(int64_t begin, int64_t end, T scale) const {
    apply(*p_.update, scale, p_.parameters, p_.gradient, begin, end - begin);
  }

  // The parameters that backward_weights has not updated: all of them where the norm had to be known first.
  void finish_update() const {
    const int64_t embedding = layout_.embedding(), bias2 = layout_.bias2();
    if (updates_at_once()) {
      update(bias2, layout_.direct_weight(0), 1);
      if (p_.update->is_sparse()) return update_embedding_rows();
      update(embedding, bias2, 1);
      return fill_zero(p_.gradient + embedding, bias2 - embedding);
    }
    const double norm = __builtin_sqrt(sum_of_squares(p_.gradient, layout_.size()));
    const double ratio = (double)p_.update->max_grad_norm / (norm + 1e-6);
    const T scale = ratio < 1 ? (T)ratio : 1;
    p_.parallel(layout_.hidden.count,
                [&](int64_t block) { update(layout_.weight1(block), layout_.weight1(block + 1), scale); });
    update(embedding, layout_.size(), scale);
    fill_zero(p_.gradient + embedding, bias2 - embedding);
  }

  // Only the tokens present: each is updated and its gradient cleared at its first table row.
  void update_embedding_rows() const {
    const int64_t dim = layout_.embedding_dim;
    T* parameters = p_.parameters + layout_.embedding();
    T* gradient = p_.gradient + layout_.embedding();
    for (int64_t row = 0; row < table_rows_; ++row) {
      T* p = parameters + p_.batch.tokens[row] * dim;
      T* g = gradient + p_.batch.tokens[row] * dim;
      for (int64_t d = 0; d < dim; ++d) {
        p[d] -= p_.update->learning_rate * g[d];
        g[d] = 0;
      }
    }
  }

  static void fill_zero(T* values, int64_t count) { __builtin_memset(values, 0, count * sizeof(T)); }

  static constexpr int64_t kMaxSlots = 8, kMaxClassSlots = 8;

  const MlpStep<T>& p_;
  const MlpLayout& layout_;
  const MlpTiling tiling_;
  const int64_t table_rows_;
  T *embedded_, *embedded_gradient_, *tables_, *direct_tables_, *target_logits_;
  T* workspace_end_;
  Slot<T> slots_[kMaxSlots];
};

template <typename T>
MlpLayout make_layout(int64_t vocab_size, int64_t context_length, int64_t embedding_dim, int64_t hidden_dim,
                      bool direct) {
  return {vocab_size,
          context_length,
          embedding_dim,
          hidden_dim,
          direct,
          Blocks(hidden_dim, kWidth<T>, kMaxVectors),
          Blocks(vocab_size, kWidth<T>, kMaxVectors)};
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
