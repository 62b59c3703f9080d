// Many training steps of a neural language model by one block of threads, or a cluster: the model stays in shared
// memory, from which each product of a step takes it in tiles of 4 x 4. Formula and names are those of mlp_step.h; the
// order is run_groups'.
//
// The rows of a tile are their features: h, a 1 whose weight is bias2, and the inputs, which are a 1 whose weight is
// bias1 and the embeddings. With these ones no bias needs code of its own; with the inputs behind h the direct
// connection is more columns of weight2. Unlike on the CPU the first layer is not projected per token: 32 rows are few.
//
// Blocks of a cluster share the hidden units. Each has the rows' inputs, logits and token gradients to itself, and
// finds the gradient of its own weights and of the embedding; what it adds to the logits and to the gradients of the
// inputs it writes into the memory of all, twice in a step.
#pragma once

#include "kernels/cuda/train_block.cuh"
#include "kernels/cuda/train_mlp_layout.cuh"
#include "kernels/cuda/train_softmax.cuh"

namespace charlm::cuda {
namespace {

template <typename T>
class MlpBlock : public TrainingBlock<T, MlpBlockLayout, MlpBlock<T>> {
  using Base = TrainingBlock<T, MlpBlockLayout, MlpBlock<T>>;
  friend Base;

 public:
  __device__ explicit MlpBlock(const BlockTraining<T, MlpBlockLayout>& training) : Base(training) {
    features_ = this->take(l_.features());
    logits_ = this->take(l_.logits());
    logit_partials_ = this->take(l_.logit_partials());
    input_partials_ = this->take(l_.input_partials());
    direct_gradients_ = this->take(l_.direct_gradients());
    token_gradients_ = this->take(l_.token_gradients());
    norm_ = this->take(MlpBlockLayout::kNormValues);
    places_ = static_cast<InputPlace*>(this->own_memory());
    own_slices_ = l_.slices() / l_.ranks;
    first_slice_ = rank_ * own_slices_;
    first_strip_ = l_.first_strip(first_slice_);
    units_ = l_.first_strip(first_slice_ + own_slices_) - first_strip_;
    is_last_ = rank_ + 1 == l_.ranks;
    outputs_ = units_ + (is_last_ ? l_.more_outputs() : 0);
  }

 private:
  using Base::l_, Base::p_, Base::thread_, Base::rank_, Base::kThreads, Base::trained_, Base::row_losses_;

  __device__ void start() {
    for (int row = thread_; row < kTileRows && l_.own_bias_strips() > 0; row += kThreads) {
      vector_at(features_, kRowPitch, units_, row)[0] = 1;
    }
    for (int i = thread_; i < l_.places(); i += kThreads) {
      const int position = i > 0 ? (i - 1) / l_.embedding_dim : 0, dim = i > 0 ? (i - 1) % l_.embedding_dim : 0;
      InputPlace place{kNothing, 0, 0, 0};
      if (i == 0) place.kind = kOne;
      if (i > 0 && position < l_.context_length) place = {kEmbedding, position, dim, position * l_.dims + dim};
      places_[i] = place;
    }
  }

  // The loss, in thread 0. The gradient is complete after a barrier. Rows are worked on in groups of four, 7 or 8 of
  // them: about four of the 32 examples of a tile have the context of another one.
  __device__ T run_tile(const TileRecord& record, T softcap, bool is_first) {
    constexpr int kMost = kTileRows / kTile;
    return record.rows() <= (kMost - 1) * kTile ? run_groups<kMost - 1>(record, softcap, is_first)
                                                : run_groups<kMost>(record, softcap, is_first);
  }

  // Group g has the rows g, g + kGroups, ... Rows that there are not have features, but no gradient.
  template <int kGroups>
  __device__ T run_groups(const TileRecord& record, T softcap, bool is_first) {
    gather_embeddings<kGroups>(record);
    __syncthreads();
    forward_hidden<kGroups>();
    __syncthreads();
    add_logits<kGroups>();
    this->model_barrier();
    finish_logits<kGroups>(softcap);
    __syncthreads();
    forward_softmax<kGroups>(record, softcap);
    __syncthreads();
    backward_weight2<kGroups>(is_first);
    __syncthreads();
    backward_hidden<kGroups>();
    __syncthreads();
    backward_weight1<kGroups>(is_first);
    backward_inputs<kGroups>();
    this->model_barrier();
    finish_input_gradients<kGroups>();
    const T loss = thread_ < kWarp ? sum_row_losses(row_losses_, record.rows()) : T(0);
    __syncthreads();
    scatter_embedding_gradient<kGroups>(record, is_first);
    return loss;
  }

  __device__ int first_input_strip() const { return units_ + l_.own_bias_strips(); }
  __device__ T* inputs() const { return vector_at(features_, kRowPitch, first_input_strip(), 0); }
  // Where a slice of this block begins, in strips from its first one on.
  __device__ int strip_of(int slice) const { return l_.first_strip(first_slice_ + slice) - first_strip_; }

  template <int kGroups>
  __device__ void gather_embeddings(const TileRecord& record) {
    constexpr int kRows = kGroups * kTile;
#pragma unroll 1
    for (int i = thread_; i < l_.input_strips.divisor * kRows; i += kThreads) {
      const int strip = i / kRows, row = i % kRows, key = row * l_.context_length;
      Four<T> values;
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        const InputPlace place = places_[strip * kTile + j];
        const int token = record.token(key + place.position);
        const T* embedding = trained_.parameters + (token == kBad ? 0 : token) * l_.dims;
        const T value = token == kBad ? not_a_number<T>() : embedding[place.dim];
        values.values[j] = place.kind == kEmbedding ? value : place.kind == kOne ? T(1) : T(0);
      }
      store_four(vector_at(inputs(), kRowPitch, strip, row), values);
    }
  }

  // h = tanh(inputs weight1)
  template <int kGroups>
  __device__ void forward_hidden() {
    const T* weight1 = trained_.parameters + l_.weight1();
#pragma unroll 1
    for (int i = thread_; i < units_ * kGroups; i += kThreads) {
      const int strip = i / kGroups, row = i % kGroups;
      const Sums<T> sums = multiply<kRowPitch, kGroups>(
          vector_at(inputs(), row), vector_at(weight1, l_.input_pitch, strip, 0), l_.input_strips.divisor);
      T* features = vector_at(features_, kRowPitch, strip, row);
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        Four<T> h;
#pragma unroll
        for (int j = 0; j < kTile; ++j) h.values[j] = fast_tanh<T>(sums.values[r][j]);
        store_four(vector_at(features, r * kGroups), h);
      }
      const int one = l_.hidden_dim - (first_strip_ + strip) * kTile;  // the column behind the last unit
      if (one >= kTile) continue;
#pragma unroll
      for (int r = 0; r < kTile; ++r) vector_at(features, r * kGroups)[one] = 1;
    }
  }

  // Parts of z = features weight2^T, one for each slice; that of the last has what comes behind the units.
  template <int kGroups>
  __device__ void add_logits() {
    const T* weight2 = trained_.parameters + l_.weight2();
    const int class_strips = l_.class_strips.divisor;
#pragma unroll 1
    for (int i = thread_; i < class_strips * own_slices_ * kGroups; i += kThreads) {
      const int part = i / kGroups, row = i % kGroups;
      const int slice = l_.class_strips.quotient(part), strip = part - slice * class_strips;
      const Sums<T> sums = multiply_by_transposed<kRowPitch, kGroups>(
          vector_at(features_, row), vector_at(weight2, strip * kTile), l_.class_pitch, strip_of(slice),
          slice + 1 < own_slices_ ? strip_of(slice + 1) : outputs_);
      store_partial(sums, logit_partials_, l_.logit_partials_pitch(), first_slice_ * class_strips * kGroups + i);
    }
  }
  // z, with its soft cap.
  template <int kGroups>
  __device__ void finish_logits(T softcap) {
    const int parts = l_.class_strips.divisor * kGroups;
#pragma unroll 1
    for (int i = thread_; i < l_.class_strips.divisor * kGroups * kTile; i += kThreads) {
      const int strip = i / (kGroups * kTile), row = i % (kGroups * kTile);
      const T* first = vector_at(logit_partials_, l_.logit_partials_pitch(), row / kGroups, 0);
      Four<T> z = sum_partials(vector_at(first, strip * kGroups + row % kGroups), parts);
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        if (softcap != 0) z.values[j] = softcap * tanh(z.values[j] / softcap);
        if (strip * kTile + j >= l_.vocab_size) z.values[j] = kLowest<T>;
      }
      store_four(vector_at(logits_, kRowPitch, strip, row), z);
    }
  }

  template <int kGroups>
  __device__ void forward_softmax(const TileRecord& record, T softcap) {
#pragma unroll 1
    for (int row = thread_ / kRowLanes; row < kGroups * kTile; row += kThreads / kRowLanes) {
      const T loss = softmax_row(p_.tiles, record, row, l_.class_strips.divisor, softcap, logits_);
      if (thread_ % kRowLanes == 0) row_losses_[row] = loss;
    }
  }

  // d weight2 = dz^T features
  template <int kGroups>
  __device__ void backward_weight2(bool is_first) {
    T* gradient = trained_.gradient + l_.weight2();
#pragma unroll 1
    for (int i = thread_; i < outputs_ * l_.class_strips.divisor; i += kThreads) {
      const int strip = l_.class_strips.quotient(i), class_strip = i - strip * l_.class_strips.divisor;
      Sums<T> sums = multiply_transposed<kGroups>(vector_at(logits_, kRowPitch, class_strip, 0),
                                                  vector_at(features_, kRowPitch, strip, 0));
      if (strip == first_input_strip()) {  // the 1 of bias1, which is no input of this layer
#pragma unroll
        for (int r = 0; r < kTile; ++r) sums.values[r][0] = 0;
      }
      store_gradient(sums, vector_at(gradient, l_.class_pitch, strip, class_strip * kTile), is_first);
    }
  }

  // d pre = (dz weight2) (1 - h^2), in the place of h; and what reaches the inputs directly
  template <int kGroups>
  __device__ void backward_hidden() {
    const T* weight2 = trained_.parameters + l_.weight2();
    const int direct_strips = l_.direct && is_last_ ? l_.input_strips.divisor : 0;
#pragma unroll 1
    for (int i = thread_; i < (units_ + direct_strips) * kGroups; i += kThreads) {
      const int number = i / kGroups, row = i % kGroups;
      const bool is_hidden = number < units_;
      const int strip = is_hidden ? number : number - units_ + first_input_strip();
      const Sums<T> sums = multiply<kRowPitch, kGroups>(
          vector_at(logits_, row), vector_at(weight2, l_.class_pitch, strip, 0), l_.class_strips.divisor);
      if (is_hidden) {
        T* features = vector_at(features_, kRowPitch, strip, row);
#pragma unroll
        for (int r = 0; r < kTile; ++r) {
          Four<T> h = load_four(vector_at(features, r * kGroups));
#pragma unroll
          for (int j = 0; j < kTile; ++j) h.values[j] = sums.values[r][j] * (1 - h.values[j] * h.values[j]);
          store_four(vector_at(features, r * kGroups), h);
        }
      } else {
        this->in_each_block(vector_at(direct_gradients_, kRowPitch, number - units_, row), [&](T* to) {
#pragma unroll
          for (int r = 0; r < kTile; ++r) store_four(vector_at(to, r * kGroups), sums.row(r));
        });
      }
    }
  }

  // d weight1 = inputs^T d pre
  template <int kGroups>
  __device__ void backward_weight1(bool is_first) {
    T* gradient = trained_.gradient + l_.weight1();
#pragma unroll 1
    for (int i = thread_; i < units_ * l_.input_strips.divisor; i += kThreads) {
      const int strip = l_.input_strips.quotient(i), input_strip = i - strip * l_.input_strips.divisor;
      const Sums<T> sums = multiply_transposed<kGroups>(vector_at(inputs(), kRowPitch, input_strip, 0),
                                                        vector_at(features_, kRowPitch, strip, 0));
      store_gradient(sums, vector_at(gradient, l_.input_pitch, strip, input_strip * kTile), is_first);
    }
  }

  // Parts of d inputs = d pre weight1^T, one for each slice. The last threads come first, which have the least of
  // weight1's gradient to find.
  template <int kGroups>
  __device__ void backward_inputs() {
    const T* weight1 = trained_.parameters + l_.weight1();
    const int input_strips = l_.input_strips.divisor;
#pragma unroll 1
    for (int i = kThreads - 1 - thread_; i < input_strips * own_slices_ * kGroups; i += kThreads) {
      const int part = i / kGroups, row = i % kGroups;
      const int slice = l_.input_strips.quotient(part), strip = part - slice * input_strips;
      const Sums<T> sums =
          multiply_by_transposed<kRowPitch, kGroups>(vector_at(features_, row), vector_at(weight1, strip * kTile),
                                                     l_.input_pitch, strip_of(slice), strip_of(slice + 1));
      store_partial(sums, input_partials_, l_.input_partials_pitch(), first_slice_ * input_strips * kGroups + i);
    }
  }
  // As vectors of a token each.
  template <int kGroups>
  __device__ void finish_input_gradients() {
    const int parts = l_.input_strips.divisor * kGroups;
#pragma unroll 1
    for (int i = thread_; i < l_.input_strips.divisor * kGroups * kTile; i += kThreads) {
      const int strip = i / (kGroups * kTile), row = i % (kGroups * kTile);
      const T* first = vector_at(input_partials_, l_.input_partials_pitch(), row / kGroups, 0);
      Four<T> sum = sum_partials(vector_at(first, strip * kGroups + row % kGroups), parts);
      if (l_.direct) add(load_four(vector_at(direct_gradients_, kRowPitch, strip, row)), &sum);
      T* gradients = token_gradients_ + row * l_.context_length * l_.dims;
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
        const InputPlace place = places_[strip * kTile + j];
        if (place.kind != kEmbedding) continue;
        gradients[place.place] = sum.values[j];
      }
    }
  }

  // d embedding[v] = the sum of what reaches v, wherever it is: two threads share the tokens of a tile.
  template <int kGroups>
  __device__ void scatter_embedding_gradient(const TileRecord& record, bool is_first) {
    constexpr int kParts = 2;
    const int dim_vectors = l_.dim_vectors.divisor, items = l_.vocab_size * dim_vectors * kParts;
    const int keys = kGroups * kTile * l_.context_length, part = thread_ % kParts;
#pragma unroll 1
    for (int first = 0; first < items; first += kThreads) {
      const int item = (first + thread_) / kParts, token = l_.dim_vectors.quotient(item);
      const int dim = (item - token * dim_vectors) * kTile;
      Four<T> sum{};
#pragma unroll 1
      for (int key = part * kTile; key < keys; key += kParts * kTile) {
        const uint4 tokens = record.tokens(key);
        const T* gradients = token_gradients_ + key * l_.dims + dim;
        add_where(tokens.x, token, gradients, &sum);
        add_where(tokens.y, token, gradients + l_.dims, &sum);
        add_where(tokens.z, token, gradients + 2 * l_.dims, &sum);
        add_where(tokens.w, token, gradients + 3 * l_.dims, &sum);
      }
#pragma unroll
      for (int offset = 1; offset < kParts; offset *= 2) {
#pragma unroll
        for (int j = 0; j < kTile; ++j) sum.values[j] += from_lane_xor(sum.values[j], offset);
      }
      if (part != 0 || token >= l_.vocab_size) continue;
      T* to = trained_.gradient + token * l_.dims + dim;
      if (!is_first) add(load_four(to), &sum);
      store_four(to, sum);
    }
  }
  // A gradient, where it is that of a token.
  __device__ static void add_where(unsigned token, int wanted, const T* gradient, Four<T>* sum) {
    const T is_here = static_cast<int>(token) == wanted ? T(1) : T(0);
    const Four<T> values = load_four(gradient);
#pragma unroll
    for (int j = 0; j < kTile; ++j) sum->values[j] += is_here * values.values[j];
  }

  __device__ static void add(const Four<T>& from, Four<T>* to) {
#pragma unroll
    for (int j = 0; j < kTile; ++j) to->values[j] += from.values[j];
  }
  // The four rows of a part of a sum, each beside the same row of other parts, in all blocks.
  __device__ void store_partial(const Sums<T>& sums, T* partials, int pitch, int part) {
    this->in_each_block(partials, [&](T* to) {
#pragma unroll
      for (int r = 0; r < kTile; ++r) store_four(vector_at(to, pitch, r, part), sums.row(r));
    });
  }
  // What the parts of all slices add up to, each `step` vectors behind the one before.
  __device__ Four<T> sum_partials(const T* first, int step) const {
    Four<T> sum = load_four(first);
#pragma unroll 1
    for (int slice = 1; slice < l_.slices(); ++slice) add(load_four(vector_at(first, slice * step)), &sum);
    return sum;
  }

  // Those of the slices are added up by the blocks that have them, then the parts in order.
  __device__ T sum_of_squares() {
    const T* gradient = trained_.gradient;
    T sums[MlpBlockLayout::kNormParts] = {};
    sums[kMostSlices] = squares<kThreads>(gradient, l_.weight1());  // of the embedding
#pragma unroll
    for (int slice = 0; slice < kMostSlices; ++slice) {
      const int own = slice - first_slice_;
      if (own < 0 || own >= own_slices_) continue;
      const int begin = strip_of(own), end = strip_of(own + 1);
      const int output_end = own + 1 < own_slices_ ? end : outputs_;
      sums[slice] = squares<kThreads>(vector_at(gradient + l_.weight1(), l_.input_pitch, begin, 0),
                                      (end - begin) * l_.input_pitch * kTile);
      sums[slice] += squares<kThreads>(vector_at(gradient + l_.weight2(), l_.class_pitch, begin, 0),
                                       (output_end - begin) * l_.class_pitch * kTile);
    }
    block_sums(sums, norm_);
    T* const parts = norm_ + MlpBlockLayout::kNormParts * kWarp;
    if (thread_ == 0) {
      parts[kMostSlices] = sums[kMostSlices];
      this->in_each_block(parts, [&](T* to) {
#pragma unroll
        for (int slice = 0; slice < kMostSlices; ++slice) {
          if (slice >= first_slice_ && slice < first_slice_ + own_slices_) to[slice] = sums[slice];
        }
      });
    }
    this->model_barrier();
    T sum = parts[kMostSlices];
#pragma unroll 1
    for (int slice = 0; slice < l_.slices(); ++slice) sum += parts[slice];
    return sum;
  }
  // Added to what the tiles before have left there.
  __device__ static void store_gradient(const Sums<T>& sums, T* to, bool is_first) {
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      Four<T> row = sums.row(r);
      if (!is_first) add(load_four(vector_at(to, r)), &row);
      store_four(vector_at(to, r), row);
    }
  }

  template <typename Function>
  __device__ void for_each_value_of(T* array, T* const* tensors, const Function& function) {
    const int inputs = l_.context_length * l_.embedding_dim, bias = l_.hidden_dim, direct = l_.bias_strips * kTile + 1;
    const int first = first_strip_;
    T *weight1 = array + l_.weight1(), *weight2 = array + l_.weight2();
    const auto each = [&](T* tensor, int rows, int columns, const auto& place) {
#pragma unroll 1
      for (int i = thread_; i < rows * columns; i += kThreads) {
        T* const here = place(i / columns, i % columns);
        if (here != nullptr) function(here, tensor + i, tensor != tensors[0]);
      }
    };
    // Null where another block has it.
    const auto in_strips = [first](T* matrix, int pitch, int strips, int row, int column) -> T* {
      const int strip = column / kTile - first;
      return strip >= 0 && strip < strips ? vector_at(matrix, pitch, strip, row) + column % kTile : nullptr;
    };
    const auto in_weight1 = [&](int unit, int input) {
      return in_strips(weight1, l_.input_pitch, units_, input, unit);
    };
    const auto in_weight2 = [&](int c, int feature) {
      return in_strips(weight2, l_.class_pitch, outputs_, c, feature);
    };
    each(tensors[0], l_.vocab_size, l_.embedding_dim, [&](int token, int d) { return array + token * l_.dims + d; });
    each(tensors[1], l_.hidden_dim, inputs, [&](int unit, int input) { return in_weight1(unit, 1 + input); });
    each(tensors[2], l_.hidden_dim, 1, [&](int unit, int) { return in_weight1(unit, 0); });
    each(tensors[3], l_.vocab_size, l_.hidden_dim, in_weight2);
    each(tensors[4], l_.vocab_size, 1, [&](int c, int) { return in_weight2(c, bias); });
    if (l_.direct) each(tensors[5], l_.vocab_size, inputs, [&](int c, int i) { return in_weight2(c, direct + i); });
  }

  T *features_, *logits_, *logit_partials_, *input_partials_, *direct_gradients_, *token_gradients_, *norm_;
  InputPlace* places_;
  int first_slice_, own_slices_, first_strip_;  // of the units of this block
  int units_, outputs_;                         // its strips in weight1, and in weight2
  bool is_last_;                                // of the blocks of the model
};

template <typename T>
__global__ void __launch_bounds__(kTrainThreads<T>, 1)
    train_mlp(const __grid_constant__ BlockTraining<T, MlpBlockLayout> training) {
  MlpBlock<T>(training).run();
}

}  // namespace
}  // namespace charlm::cuda
