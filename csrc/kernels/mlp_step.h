// Whole training steps of the neural language model of Bengio et al. 2003: loss, gradient, update.
//
//   pre = bias1 + sum_t P_t[x_t],  P_t = E W1_t^T      the first layer, projected once per token instead of per example
//   h = tanh(pre)                                      once per distinct context
//   z = W2 h + bias2 [+ sum_t Q_t[x_t]],  Q_t = E Wd_t^T      softcap * tanh(z / softcap) where there is a softcap
//   loss = sum over entries (context u, target y, weight w) of w (logsumexp(z_u) - z_uy)
//   d loss / d z_u = (sum of u's w) softmax(z_u) - w at every y
//
// E (V, D) embedding, W1 (H, T*D), W2 (V, H), Wd (V, T*D) the direct connection.
#pragma once

#include <stdint.h>

#include "kernels/batch.h"
#include "kernels/blocks.h"
#include "kernels/isa.h"
#include "kernels/update.h"

namespace charlm {

// Where each parameter is in the one array that a step works on (its gradient and optimizer state look the same):
//   for each block of the hidden dimension   bias1, then the T*D columns of weight1, then the V rows of weight2
//   embedding (V, D), bias2 (V,)
//   for each block of the classes            the T*D columns of direct_weight
// so that every product runs along contiguous rows, and bias1 is one more column of weight1 whose input is 1.
struct MlpLayout {
  int64_t vocab_size = 0, context_length = 0, embedding_dim = 0, hidden_dim = 0;
  bool direct = false;
  Blocks hidden, classes, dims;  // of H, V and D

  CHARLM_SHARED_INLINE int64_t inputs() const { return context_length * embedding_dim; }
  CHARLM_SHARED_INLINE int64_t weight1_rows() const { return 1 + inputs(); }
  CHARLM_SHARED_INLINE int64_t hidden_rows() const { return weight1_rows() + vocab_size; }
  CHARLM_SHARED_INLINE int64_t weight1(int64_t block) const { return hidden.begin(block) * hidden_rows(); }
  CHARLM_SHARED_INLINE int64_t weight2(int64_t block) const {
    return weight1(block) + hidden.width(block) * weight1_rows();
  }
  CHARLM_SHARED_INLINE int64_t embedding() const { return weight1(hidden.count); }
  CHARLM_SHARED_INLINE int64_t bias2() const {
    return embedding() + (vocab_size * embedding_dim + classes.lanes - 1) / classes.lanes * classes.lanes;
  }
  CHARLM_SHARED_INLINE int64_t direct_weight(int64_t block) const {
    return bias2() + classes.padded() + (direct ? classes.begin(block) * inputs() : 0);
  }
  CHARLM_SHARED_INLINE int64_t size() const { return direct_weight(classes.count); }
};

// The parameters as torch holds them, contiguous; or a gradient.
template <typename T>
struct MlpTensors {
  T* embedding = nullptr;
  T* weight1 = nullptr;
  T* bias1 = nullptr;
  T* weight2 = nullptr;
  T* bias2 = nullptr;
  T* direct_weight = nullptr;  // null: there is none
};

// How a batch is cut; by shape alone, so that results do not depend on the number of threads.
struct MlpTiling {
  static constexpr int64_t kMaxSlots = 8, kMaxClassSlots = 8;

  int64_t tile_rows;  // contexts worked on at a time
  int64_t tiles;
  int64_t slots;        // groups of tiles with a gradient each, added up in order
  int64_t class_slots;  // groups of class blocks with a gradient of h each, added up in order

  MlpTiling(const MlpLayout& layout, int64_t rows);
  // All that is done to a block of the hidden dimension is done while it is in cache.
  CHARLM_SHARED_INLINE bool is_fused() const { return tiles <= 1 && class_slots == 1; }
  template <typename T>
  CHARLM_SHARED_INLINE UpdateTime update_time(const Update<T>* update) const {
    return when_to_update(update, tiles <= 1);
  }
};

template <typename T>
struct MlpStep {
  MlpLayout layout;
  ContextBatch<T> batch;
  T softcap = 0;  // 0: none
  T* parameters = nullptr;
  T* gradient = nullptr;              // null: only the loss
  const Update<T>* update = nullptr;  // null: only loss and gradient
  T* workspace = nullptr;             // MlpKernels::workspace values, aligned to 64 bytes
  T* entry_losses = nullptr;          // (entries,) logsumexp - z_y of each entry; null: not wanted
};

namespace cpu {
template <typename T>
struct MlpKernels {
  MlpLayout (*layout)(int64_t vocab_size, int64_t context_length, int64_t embedding_dim, int64_t hidden_dim,
                      bool direct);
  // Tensors to and from MlpLayout::size() values, of which packing writes all, zeros between the parameters.
  void (*pack)(const MlpLayout& layout, const MlpTensors<const T>& tensors, T* flat);
  void (*unpack)(const MlpLayout& layout, const T* flat, const MlpTensors<T>& tensors);
  // Values of workspace for steps with at most `rows` contexts, `table_rows` table rows and `entries` entries.
  int64_t (*workspace)(const MlpLayout& layout, int64_t rows, int64_t table_rows, int64_t entries);
  // Returns the loss before the update. Plain SGD on a single tile adds its steps to the parameters as it finds them;
  // in all other cases `gradient` is written, each block only until it has been used where nothing is to be clipped.
  // The embedding's gradient must be zero on entry; after an update it is zero again.
  double (*step)(const MlpStep<T>& step);
};
CHARLM_DECLARE_KERNELS(MlpKernels<float>)
CHARLM_DECLARE_KERNELS(MlpKernels<double>)
}  // namespace cpu

}  // namespace charlm
