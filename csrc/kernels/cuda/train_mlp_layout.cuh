// What train_mlp.cuh has in shared memory, and where.
#pragma once

#include "kernels/cuda/block_products.cuh"
#include "kernels/cuda/train_softmax.cuh"
#include "kernels/model_shape.h"

namespace charlm::cuda {
namespace {

// What an input of weight1 is: bias1's 1, a number of an embedding, or what fills up the last strip.
enum InputKind : int { kOne, kEmbedding, kNothing };
struct alignas(kVectorBytes) InputPlace {
  InputKind kind;
  int position, dim;
  int place;  // among the token gradients of a row
};

// Where a model is in shared memory; its gradient, and each tensor of its optimizer's state, look the same:
//   embedding (V, dims), row by row
//   weight1 transposed (1 + T*D, H), its first row bias1       strip by strip, as all matrices
//   weight2 (V, features): columns for h, bias2, and for the inputs where there is a direct connection
struct MlpBlockLayout {
  int vocab_size = 0, context_length = 0, embedding_dim = 0, hidden_dim = 0;
  bool direct = false;
  int dims = 0;                                   // D, whole vectors
  int unit_strips = 0;                            // of h
  int bias_strips = 0;                            // of h and the 1 behind it
  int input_pitch = 0, class_pitch = 0;           // of weight1 and weight2
  SmallDivisor input_strips{1}, class_strips{1};  // of the inputs and the logits: divided by, each
  SmallDivisor dim_vectors{1};                    // of an embedding
  int input_splits = 1, logit_splits = 1;         // of a sum, so that enough threads have a part
  int partial_pitch = 0;                          // vectors of partial sums for each row of a tile

  __host__ __device__ int feature_strips() const { return bias_strips + input_strips.divisor; }
  // Those that weight2 has.
  __host__ __device__ int output_strips() const { return direct ? feature_strips() : bias_strips; }

  __host__ __device__ int weight1() const { return vocab_size * dims; }
  __host__ __device__ int weight2() const { return weight1() + unit_strips * input_pitch * kTile; }
  __host__ __device__ int size() const { return weight2() + output_strips() * class_pitch * kTile; }
  __host__ __device__ int parameters() const { return direct ? 6 : 5; }

  __host__ __device__ int features() const { return feature_strips() * kRowPitch * kTile; }
  __host__ __device__ int logits() const { return class_strips.divisor * kRowPitch * kTile; }
  __host__ __device__ int partials() const { return kTile * partial_pitch * kTile; }
  __host__ __device__ int direct_gradients() const { return direct ? input_strips.divisor * kRowPitch * kTile : 0; }
  __host__ __device__ int token_gradients() const { return kTileRows * context_length * dims; }
  __host__ __device__ int places() const { return input_strips.divisor * kTile; }
  // Values of shared memory beside the model.
  __host__ __device__ int own_values() const {
    return features() + logits() + partials() + direct_gradients() + token_gradients();
  }
  __host__ __device__ int own_bytes() const { return places() * static_cast<int>(sizeof(InputPlace)); }

  static MlpBlockLayout of(const ModelShape& shape, int threads) {
    MlpBlockLayout layout;
    layout.vocab_size = static_cast<int>(shape.vocab_size);
    layout.context_length = static_cast<int>(shape.context_length);
    layout.embedding_dim = static_cast<int>(shape.embedding_dim);
    layout.hidden_dim = static_cast<int>(shape.hidden_dim);
    layout.direct = shape.direct;
    const int inputs = 1 + layout.context_length * layout.embedding_dim;
    layout.dims = strips_of(layout.embedding_dim) * kTile;
    layout.unit_strips = strips_of(layout.hidden_dim);
    layout.bias_strips = strips_of(layout.hidden_dim + 1);
    layout.input_pitch = pitch_of(inputs);
    layout.class_pitch = pitch_of(layout.vocab_size);
    layout.input_strips = SmallDivisor(strips_of(inputs));
    layout.class_strips = SmallDivisor(strips_of(layout.vocab_size));
    layout.dim_vectors = SmallDivisor(layout.dims / kTile);
    layout.logit_splits = splits(layout.class_strips.divisor, layout.output_strips(), threads);
    layout.input_splits = splits(layout.input_strips.divisor, layout.unit_strips, threads);
    const int logit_parts = layout.class_strips.divisor * layout.logit_splits;
    const int input_parts = layout.input_strips.divisor * layout.input_splits;
    layout.partial_pitch = kTileRows / kTile * (logit_parts > input_parts ? logit_parts : input_parts);
    return layout;
  }

 private:
  // Into how many parts sums over `summed` strips are best split, for results of so many strips. What counts are the
  // tiles that the busiest of the four schedulers of a multiprocessor has warps for, of rows as a batch has them, four
  // of 32 repeated.
  static int splits(int strips, int summed, int threads) {
    constexpr int kSchedulers = 4, kUsualGroups = 7;
    int best = 1, least = 0;
    for (int splits = 1; splits <= summed && kUsualGroups * strips * splits <= threads; ++splits) {
      const int warps = (kUsualGroups * strips * splits + kWarp - 1) / kWarp;
      const int work = (warps + kSchedulers - 1) / kSchedulers * (1 + (summed + splits - 1) / splits);
      if (splits > 1 && work >= least) continue;
      best = splits;
      least = work;
    }
    return best;
  }
};

}  // namespace
}  // namespace charlm::cuda
