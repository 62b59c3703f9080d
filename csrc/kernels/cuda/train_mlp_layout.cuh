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

// The units are cut into slices, each of whose parts of a sum is added up by itself, and then the parts in order. So
// the blocks of a cluster, which share the slices, find to the bit what one block finds that has all of them.
inline constexpr int kMostSlices = 4;

// Where a model is in shared memory; its gradient, and each tensor of its optimizer's state, look the same:
//   embedding (V, dims), row by row
//   weight1 transposed (1 + T*D, H), its first row bias1       strip by strip, as all matrices
//   weight2 (V, features): columns for h, bias2, and for the inputs where there is a direct connection
// A block of a cluster has the embedding, and of the weights the strips of its units.
struct MlpBlockLayout {
  int vocab_size = 0, context_length = 0, embedding_dim = 0, hidden_dim = 0;
  bool direct = false;
  int dims = 0;                                   // D, whole vectors
  int unit_strips = 0;                            // of h
  int bias_strips = 0;                            // of h and the 1 behind it
  int log_slices = 0, ranks = 1;                  // of the units: 2^log_slices; blocks that share these
  int most_units = 0;                             // strips of units that a block has at most
  int input_pitch = 0, class_pitch = 0;           // of weight1 and weight2
  SmallDivisor input_strips{1}, class_strips{1};  // of the inputs and the logits: divided by, each
  SmallDivisor dim_vectors{1};                    // of an embedding

  // The strips of units of a slice; one past the last slice, where they end.
  __host__ __device__ int first_strip(int slice) const { return slice * unit_strips >> log_slices; }
  __host__ __device__ int slices() const { return 1 << log_slices; }
  // What follows the units: a strip of its own for the 1 behind them where they fill theirs, and for weight2 the inputs
  // where there is a direct connection. The last block has it.
  __host__ __device__ int own_bias_strips() const { return bias_strips - unit_strips; }
  __host__ __device__ int more_outputs() const { return own_bias_strips() + (direct ? input_strips.divisor : 0); }

  __host__ __device__ int weight1() const { return vocab_size * dims; }
  __host__ __device__ int weight2() const { return weight1() + most_units * input_pitch * kTile; }
  __host__ __device__ int size() const { return weight2() + (most_units + more_outputs()) * class_pitch * kTile; }
  __host__ __device__ int parameters() const { return direct ? 6 : 5; }

  __host__ __device__ int features() const {
    return (most_units + own_bias_strips() + input_strips.divisor) * kRowPitch * kTile;
  }
  __host__ __device__ int logits() const { return class_strips.divisor * kRowPitch * kTile; }
  // Vectors of partial sums for each row of a tile, a part from each slice.
  __host__ __device__ int logit_partials_pitch() const {
    return kTileRows / kTile * class_strips.divisor << log_slices;
  }
  __host__ __device__ int input_partials_pitch() const {
    return kTileRows / kTile * input_strips.divisor << log_slices;
  }
  __host__ __device__ int logit_partials() const { return kTile * logit_partials_pitch() * kTile; }
  __host__ __device__ int input_partials() const { return kTile * input_partials_pitch() * kTile; }
  __host__ __device__ int direct_gradients() const { return direct ? input_strips.divisor * kRowPitch * kTile : 0; }
  __host__ __device__ int token_gradients() const { return kTileRows * context_length * dims; }
  // Of the sum of squares: from each slice, and from the embedding. Sums of warps, then of the blocks.
  static constexpr int kNormParts = kMostSlices + 1, kNormValues = kNormParts * kWarp + 2 * kTile;
  __host__ __device__ int places() const { return input_strips.divisor * kTile; }
  // Values of shared memory beside the model.
  __host__ __device__ int own_values() const {
    return features() + logits() + logit_partials() + input_partials() + direct_gradients() + token_gradients() +
           kNormValues;
  }
  __host__ __device__ int own_bytes() const { return places() * static_cast<int>(sizeof(InputPlace)); }

  // How many blocks can share a model: each has a slice at least.
  static int most_ranks(const ModelShape& shape) {
    int slices = 1;
    while (slices < kMostSlices && 2 * slices <= strips_of(static_cast<int>(shape.hidden_dim))) slices *= 2;
    return slices;
  }
  static MlpBlockLayout of(const ModelShape& shape, int ranks) {
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
    while (layout.slices() < most_ranks(shape)) ++layout.log_slices;
    layout.ranks = ranks;
    layout.most_units = (layout.unit_strips + ranks - 1) / ranks;
    layout.input_pitch = pitch_of(inputs);
    layout.class_pitch = pitch_of(layout.vocab_size);
    layout.input_strips = SmallDivisor(strips_of(inputs));
    layout.class_strips = SmallDivisor(strips_of(layout.vocab_size));
    layout.dim_vectors = SmallDivisor(layout.dims / kTile);
    return layout;
  }
};

}  // namespace
}  // namespace charlm::cuda
