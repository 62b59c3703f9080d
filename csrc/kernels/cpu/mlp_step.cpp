// The order of a training step. What it works on is in cpu/mlp_memory.h, its layers are in cpu/mlp_input_layers.h and
// cpu/mlp_output_layer.h.
#include "kernels/mlp_step.h"

#include "kernels/cpu/mlp_input_layers.h"
#include "kernels/cpu/mlp_memory.h"
#include "kernels/cpu/mlp_output_layer.h"
#include "kernels/cpu/mlp_packing.h"
#include "kernels/cpu/optimizer.h"
#include "kernels/parallel.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

template <typename T>
class Step {
 public:
  explicit Step(const MlpStep<T>& problem)
      : p_(problem),
        layout_(problem.layout),
        m_(problem, problem.batch.rows, problem.batch.table_rows(layout_.context_length),
           problem.batch.entry_begin[problem.batch.rows]),
        inputs_(m_),
        output_(m_, inputs_) {}

  double run() {
    const MlpTiling& tiling = m_.tiling;
    inputs_.gather_embeddings();
    if (!m_.fused()) for_each(layout_.hidden.count, [&](int64_t block) { inputs_.project(block); });
    if (layout_.direct) for_each(layout_.classes.count, [&](int64_t c) { inputs_.project_direct(c); });
    for_each(tiling.slots, [&](int64_t s) {
      const int64_t first = tiling.tiles * s / tiling.slots, last = tiling.tiles * (s + 1) / tiling.slots;
      m_.slots[s].loss = 0;
      for (int64_t tile = first; tile < last; ++tile) run_tile(&m_.slots[s], tile, tile == first);
    });
    double loss = 0;
    for (int64_t s = 0; s < tiling.slots; ++s) loss += m_.slots[s].loss;
    if (p_.gradient == nullptr) return loss;
    if (tiling.slots > 1) add_slots();
    if (!m_.fused()) inputs_.backward_hidden_tables();
    if (layout_.direct) inputs_.backward_direct_tables();
    inputs_.scatter_embedding_gradient();
    if (p_.update != nullptr) finish_update();
    return loss;
  }

 private:
  void run_tile(Slot<T>* slot, int64_t tile_index, bool is_first) const {
    const SoftmaxTile<T> tile = m_.softmax_tile(*slot, tile_index);
    const bool one_class_slot = m_.tiling.class_slots == 1;
    one_class_slot ? forward(slot, tile, is_first) : forward_class_slots(slot, tile);
    output_.forward_softmax(*slot, tile);
    if (p_.gradient != nullptr) {
      one_class_slot ? backward(*slot, tile, is_first) : backward_class_slots(*slot, tile, is_first);
      if (layout_.direct) inputs_.backward_direct(*slot, tile, is_first);
    }
    output_.finish_loss(slot, tile);
  }

  void forward(Slot<T>* slot, const SoftmaxTile<T>& tile, bool is_first) const {
    for (int64_t c = 0; c < layout_.classes.count; ++c) output_.start_logits(tile, c);
    for (int64_t block = 0; block < layout_.hidden.count; ++block) {
      if (m_.fused()) inputs_.project(block);
      inputs_.forward_hidden(*slot, tile, block);
      for (int64_t c = 0; c < layout_.classes.count; ++c) output_.add_logits(*slot, tile, 0, c, block, is_first);
    }
    output_.finish_logits(slot, tile, 0, 0, layout_.classes.count);
  }
  void backward(const Slot<T>& slot, const SoftmaxTile<T>& tile, bool is_first) const {
    output_.backward_softmax(slot, tile, 0, layout_.classes.count, is_first);
    for (int64_t block = 0; block < layout_.hidden.count; ++block) {
      for (int64_t c = 0; c < layout_.classes.count; ++c) {
        output_.backward_class_block(slot, tile, 0, block, c, is_first);
      }
      inputs_.backward_hidden(slot, tile, block, is_first);
      if (m_.fused()) inputs_.backward_hidden_tables_of(block);
    }
  }

  // Every class block is done with while it is in cache: the logits of all of them are far larger.
  void forward_class_slots(Slot<T>* slot, const SoftmaxTile<T>& tile) const {
    for_each(layout_.hidden.count, [&](int64_t block) { inputs_.forward_hidden(*slot, tile, block); });
    for_each(m_.tiling.class_slots, [&](int64_t s) {
      for (int64_t c = m_.class_block(s); c < m_.class_block(s + 1); ++c) {
        output_.start_logits(tile, c);
        for (int64_t block = 0; block < layout_.hidden.count; ++block) {
          output_.add_logits(*slot, tile, s, c, block, true);
        }
        output_.finish_logits(slot, tile, s, c, c + 1);
      }
    });
  }
  void backward_class_slots(const Slot<T>& slot, const SoftmaxTile<T>& tile, bool is_first) const {
    for_each(m_.tiling.class_slots, [&](int64_t s) {
      for (int64_t c = m_.class_block(s); c < m_.class_block(s + 1); ++c) {
        output_.backward_softmax(slot, tile, c, c + 1, is_first);
        for (int64_t block = 0; block < layout_.hidden.count; ++block) {
          output_.backward_class_block(slot, tile, s, block, c, is_first);
        }
      }
    });
    for_each(layout_.hidden.count, [&](int64_t block) { inputs_.backward_hidden(slot, tile, block, is_first); });
  }

  // Sums the slots' gradients into slot 0's.
  void add_slots() const {
    for_each(layout_.hidden.count, [&](int64_t block) {
      const int64_t width = layout_.hidden.width(block);
      add_slots_at(&Slot<T>::tables_gradient, m_.table_rows * layout_.hidden.begin(block), m_.table_rows * width);
      add_slots_at(&Slot<T>::gradient, layout_.weight2(block), layout_.vocab_size * width);
    });
    add_slots_at(&Slot<T>::gradient, layout_.bias2(), layout_.classes.padded());
    if (layout_.direct) add_slots_at(&Slot<T>::direct_gradient, 0, m_.table_rows * layout_.classes.padded());
  }
  void add_slots_at(T* Slot<T>::* member, int64_t offset, int64_t count) const {
    for (int64_t i = offset; i < offset + count; i += kWidth<T>) {
      Vec<T> sum = load(m_.slots[0].*member + i);
      for (int64_t s = 1; s < m_.tiling.slots; ++s) sum += load(m_.slots[s].*member + i);
      store(m_.slots[0].*member + i, sum);
    }
  }

  // The parameters that are not yet updated: all of them where the norm had to be known first.
  void finish_update() const {
    if (m_.in_place()) return;
    const int64_t embedding = layout_.embedding(), bias2 = layout_.bias2();
    const T scale = clip_scale(*p_.update, p_.gradient, layout_.size());
    if (!m_.at_once()) {
      for_each(layout_.hidden.count,
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
    for (int64_t row = 0; row < m_.table_rows; ++row) {
      const int64_t offset = layout_.embedding() + p_.batch.tokens[row] * dim;
      for (int64_t d = 0; d < dim; ++d) {
        p_.parameters[offset + d] -= p_.update->rates.learning_rate * scale * p_.gradient[offset + d];
        p_.gradient[offset + d] = 0;
      }
    }
  }

  const MlpStep<T>& p_;
  const MlpLayout& layout_;
  MlpMemory<T> m_;
  const InputLayers<T> inputs_;
  const OutputLayer<T> output_;
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
  MlpStep<T> problem;  // without memory: its pieces are only counted
  problem.layout = layout;
  return MlpMemory<T>(problem, rows, table_rows, entries).size;
}

template <typename T>
double step(const MlpStep<T>& problem) {
  return Step<T>(problem).run();
}

}  // namespace

template <>
MlpKernels<float> kernels() {
  return {make_layout<float>, pack<float>, unpack<float>, workspace<float>, step<float>};
}
template <>
MlpKernels<double> kernels() {
  return {make_layout<double>, pack<double>, unpack<double>, workspace<double>, step<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
