// Many training steps of a neural language model by one block of threads: the model stays in shared memory, from which
// each product of a step takes it in tiles of 4 x 4. Formula and names are those of mlp_step.h; the order is
// run_tile's.
//
// The rows of a tile are their features: h, a 1 whose weight is bias2, and the inputs, which are a 1 whose weight is
// bias1 and the embeddings. With these ones no bias needs code of its own; with the inputs behind h the direct
// connection is more columns of weight2. Unlike on the CPU the first layer is not projected per token: 32 rows are few.
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
    partials_ = this->take(l_.partials());
    direct_gradients_ = this->take(l_.direct_gradients());
    token_gradients_ = this->take(l_.token_gradients());
    places_ = static_cast<InputPlace*>(this->own_memory());
  }

 private:
  using Base::l_, Base::p_, Base::thread_, Base::kThreads, Base::trained_, Base::row_losses_;

  __device__ void start() {
    const int bias = l_.hidden_dim;
    for (int row = thread_; row < kTileRows; row += kThreads) {
      vector_at(features_, kRowPitch, bias / kTile, row)[bias % kTile] = 1;
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
    __syncthreads();
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
    __syncthreads();
    finish_input_gradients<kGroups>();
    const T loss = thread_ < kWarp ? sum_row_losses(row_losses_, record.rows()) : T(0);
    __syncthreads();
    scatter_embedding_gradient<kGroups>(record, is_first);
    return loss;
  }

  __device__ T* inputs() const { return vector_at(features_, kRowPitch, l_.bias_strips, 0); }

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
    for (int i = thread_; i < l_.unit_strips * kGroups; i += kThreads) {
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
      const int one = l_.hidden_dim - strip * kTile;  // the column behind the last unit
      if (one >= kTile) continue;
#pragma unroll
      for (int r = 0; r < kTile; ++r) vector_at(features, r * kGroups)[one] = 1;
    }
  }

  // Parts of z = features weight2^T: part s takes every logit_splits-th strip.
  template <int kGroups>
  __device__ void add_logits() {
    const T* weight2 = trained_.parameters + l_.weight2();
    const int class_strips = l_.class_strips.divisor;
#pragma unroll 1
    for (int i = thread_; i < class_strips * l_.logit_splits * kGroups; i += kThreads) {
      const int part = i / kGroups, row = i % kGroups;
      const int split = l_.class_strips.quotient(part), strip = part - split * class_strips;
      const Sums<T> sums =
          multiply_by_transposed<kRowPitch, kGroups>(vector_at(features_, row), vector_at(weight2, strip * kTile),
                                                     l_.class_pitch, split, l_.logit_splits, l_.output_strips());
      store_partial(sums, i);
    }
  }
  // z, with its soft cap.
  template <int kGroups>
  __device__ void finish_logits(T softcap) {
    const int parts = l_.class_strips.divisor * kGroups;
#pragma unroll 1
    for (int i = thread_; i < l_.class_strips.divisor * kGroups * kTile; i += kThreads) {
      const int strip = i / (kGroups * kTile), row = i % (kGroups * kTile);
      Four<T> z = sum_partials(row / kGroups, strip * kGroups + row % kGroups, parts, l_.logit_splits);
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
    for (int i = thread_; i < l_.output_strips() * l_.class_strips.divisor; i += kThreads) {
      const int strip = l_.class_strips.quotient(i), class_strip = i - strip * l_.class_strips.divisor;
      Sums<T> sums = multiply_transposed<kGroups>(vector_at(logits_, kRowPitch, class_strip, 0),
                                                  vector_at(features_, kRowPitch, strip, 0));
      if (strip == l_.bias_strips) {  // the 1 of bias1, which is no input of this layer
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
    const int direct_strips = l_.direct ? l_.input_strips.divisor : 0;
#pragma unroll 1
    for (int i = thread_; i < (l_.unit_strips + direct_strips) * kGroups; i += kThreads) {
      const int number = i / kGroups, row = i % kGroups;
      const bool is_hidden = number < l_.unit_strips;
      const int strip = is_hidden ? number : number - l_.unit_strips + l_.bias_strips;
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
        T* to = vector_at(direct_gradients_, kRowPitch, strip - l_.bias_strips, row);
#pragma unroll
        for (int r = 0; r < kTile; ++r) store_four(vector_at(to, r * kGroups), sums.row(r));
      }
    }
  }

  // d weight1 = inputs^T d pre
  template <int kGroups>
  __device__ void backward_weight1(bool is_first) {
    T* gradient = trained_.gradient + l_.weight1();
#pragma unroll 1
    for (int i = thread_; i < l_.unit_strips * l_.input_strips.divisor; i += kThreads) {
      const int strip = l_.input_strips.quotient(i), input_strip = i - strip * l_.input_strips.divisor;
      const Sums<T> sums = multiply_transposed<kGroups>(vector_at(inputs(), kRowPitch, input_strip, 0),
                                                        vector_at(features_, kRowPitch, strip, 0));
      store_gradient(sums, vector_at(gradient, l_.input_pitch, strip, input_strip * kTile), is_first);
    }
  }

  // Parts of d inputs = d pre weight1^T: part s takes every input_splits-th strip. The last threads come first, which
  // have the least of weight1's gradient to find.
  template <int kGroups>
  __device__ void backward_inputs() {
    const T* weight1 = trained_.parameters + l_.weight1();
    const int input_strips = l_.input_strips.divisor;
#pragma unroll 1
    for (int i = kThreads - 1 - thread_; i < input_strips * l_.input_splits * kGroups; i += kThreads) {
      const int part = i / kGroups, row = i % kGroups;
      const int split = l_.input_strips.quotient(part), strip = part - split * input_strips;
      const Sums<T> sums =
          multiply_by_transposed<kRowPitch, kGroups>(vector_at(features_, row), vector_at(weight1, strip * kTile),
                                                     l_.input_pitch, split, l_.input_splits, l_.unit_strips);
      store_partial(sums, i);
    }
  }
  // As vectors of a token each.
  template <int kGroups>
  __device__ void finish_input_gradients() {
    const int parts = l_.input_strips.divisor * kGroups;
#pragma unroll 1
    for (int i = thread_; i < l_.input_strips.divisor * kGroups * kTile; i += kThreads) {
      const int strip = i / (kGroups * kTile), row = i % (kGroups * kTile);
      Four<T> sum = sum_partials(row / kGroups, strip * kGroups + row % kGroups, parts, l_.input_splits);
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
  // The four rows of a part of a sum, each beside the same row of other parts.
  __device__ void store_partial(const Sums<T>& sums, int part) {
#pragma unroll
    for (int r = 0; r < kTile; ++r) store_four(vector_at(partials_, l_.partial_pitch, r, part), sums.row(r));
  }
  // What the parts number first, first + step, ... add up to.
  __device__ Four<T> sum_partials(int row, int first, int step, int count) const {
    const T* from = vector_at(partials_, l_.partial_pitch, row, first);
    Four<T> sum = load_four(from);
#pragma unroll 4
    for (int s = 1; s < count; ++s) add(load_four(vector_at(from, s * step)), &sum);
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
    T *weight1 = array + l_.weight1(), *weight2 = array + l_.weight2();
    const auto each = [&](T* tensor, int rows, int columns, const auto& place) {
#pragma unroll 1
      for (int i = thread_; i < rows * columns; i += kThreads) function(place(i / columns, i % columns), tensor + i);
    };
    const auto in_strips = [](T* matrix, int pitch, int row, int column) {
      return vector_at(matrix, pitch, column / kTile, row) + column % kTile;
    };
    const auto in_weight1 = [&](int unit, int input) { return in_strips(weight1, l_.input_pitch, input, unit); };
    const auto in_weight2 = [&](int c, int feature) { return in_strips(weight2, l_.class_pitch, c, feature); };
    each(tensors[0], l_.vocab_size, l_.embedding_dim, [&](int token, int d) { return array + token * l_.dims + d; });
    each(tensors[1], l_.hidden_dim, inputs, [&](int unit, int input) { return in_weight1(unit, 1 + input); });
    each(tensors[2], l_.hidden_dim, 1, [&](int unit, int) { return in_weight1(unit, 0); });
    each(tensors[3], l_.vocab_size, l_.hidden_dim, in_weight2);
    each(tensors[4], l_.vocab_size, 1, [&](int c, int) { return in_weight2(c, bias); });
    if (l_.direct) each(tensors[5], l_.vocab_size, inputs, [&](int c, int i) { return in_weight2(c, direct + i); });
  }

  T *features_, *logits_, *partials_, *direct_gradients_, *token_gradients_;
  InputPlace* places_;
};

template <typename T>
__global__ void __launch_bounds__(kTrainThreads<T>, 1)
    train_mlp(const __grid_constant__ BlockTraining<T, MlpBlockLayout> training) {
  MlpBlock<T>(training).run();
}

}  // namespace
}  // namespace charlm::cuda
