// An output layer on a GPU: products for the logits of a chunk of rows, what an op makes of them, and products that
// take the gradient from there.
#pragma once

#include <type_traits>

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/copy.cuh"
#include "kernels/output_layer.h"

namespace charlm::cuda {
namespace {

// One call, in the storage type of its matrices.
template <typename S>
class OutputLayerCall {
 public:
  using T = Compute<S>;

  OutputLayerCall(const OutputLayer& layer, DeviceLibrary& library, Stream stream)
      : layer_(layer),
        library_(library),
        stream_(stream),
        rows_(layer.input.rows),
        classes_(layer.weight.rows),
        features_(layer.input.columns),
        chunk_(chunk_rows(layer)),
        logits_(library.allocate_values<S>(chunk_ * logit_stride(layer)), layer.input.storage, chunk_, classes_,
                logit_stride(layer), 1) {
    // A single product can write the weight's gradient as it is stored: it adds up in float32 all the same.
    if (layer_.weight_gradient != nullptr && (!kWidens || rows_ != chunk_)) {
      weight_sums_ = computed_place(weight_gradient(), classes_ * features_, library_);
    }
    if (layer_.bias_gradient != nullptr) bias_sums_ = computed_place(bias_gradient(), classes_, library_);
  }

  // The place of a chunk's logits, and of their gradient.
  ClassMatrix logits() const {
    return {.data = logits_.data, .storage = logits_.storage, .outer_stride = logits_.row_stride};
  }
  // The rows of a chunk, but for the last, which has those that are left; 0 where the layer has none.
  int64_t rows_of_chunk() const { return chunk_; }

  // Calls use_logits(first row, rows) for each chunk once its logits are in place; where a gradient is wanted it leaves
  // theirs there.
  template <typename UseLogits>
  Error run(const UseLogits& use_logits) {
    if (rows_ == 0) return clear_sums();
    for (int64_t first = 0; first < rows_; first += chunk_) {
      const int64_t rows = rows_ - first < chunk_ ? rows_ - first : chunk_;
      const Matrix input = layer_.input.rows_from(first, rows), logits = logits_.rows_from(0, rows);
      write_logits(input, logits);
      if (const Error error = use_logits(first, rows)) return error;
      if (const Error error = add_gradients(first, input, logits)) return error;
    }
    return store_sums();
  }

 private:
  static constexpr bool kWidens = !std::is_same_v<S, T>;

  S* weight_gradient() const { return static_cast<S*>(layer_.weight_gradient); }
  S* bias_gradient() const { return static_cast<S*>(layer_.bias_gradient); }

  Error clear_sums() {
    if (layer_.weight_gradient != nullptr) {
      if (const Error error = clear(weight_gradient(), classes_ * features_, stream_)) return error;
    }
    return layer_.bias_gradient != nullptr ? clear(bias_gradient(), classes_, stream_) : cudaSuccess;
  }

  void write_logits(const Matrix& input, const Matrix& logits) {
    if (layer_.bias == nullptr) return library_.multiply(logits, input, layer_.weight.transposed());
    const Matrix bias(layer_.bias, logits.storage, 1, classes_);
    library_.multiply_add(logits, bias, input, layer_.weight.transposed());
  }

  // `gradient` is that of the logits.
  Error add_gradients(int64_t first, const Matrix& input, const Matrix& gradient) {
    if (layer_.input_gradient != nullptr) {
      S* to = static_cast<S*>(layer_.input_gradient) + first * features_;
      library_.multiply(Matrix(to, input.storage, input.rows, features_), gradient, layer_.weight);
    }
    if (layer_.weight_gradient != nullptr) add_to_weight_gradient(first, input, gradient);
    if (bias_sums_ == nullptr) return cudaSuccess;
    return column_sums(static_cast<const S*>(gradient.data), input.rows, classes_, gradient.row_stride, first > 0,
                       bias_sums_, library_, stream_);
  }

  void add_to_weight_gradient(int64_t first, const Matrix& input, const Matrix& gradient) {
    if (weight_sums_ == nullptr) {
      const Matrix whole(layer_.weight_gradient, input.storage, classes_, features_);
      return library_.multiply(whole, gradient.transposed(), input);
    }
    const Matrix sums(weight_sums_, kComputeStorage<S>, classes_, features_);
    if (first == 0) {
      library_.multiply(sums, gradient.transposed(), input);
    } else {
      library_.multiply_add(sums, sums, gradient.transposed(), input);
    }
  }

  Error store_sums() {
    if (weight_sums_ != nullptr) {
      const Error error = store_computed(weight_sums_, classes_ * features_, weight_gradient(), stream_);
      if (error != cudaSuccess) return error;
    }
    return bias_sums_ != nullptr ? store_computed(bias_sums_, classes_, bias_gradient(), stream_) : cudaSuccess;
  }

  const OutputLayer& layer_;
  DeviceLibrary& library_;
  Stream stream_;
  int64_t rows_, classes_, features_, chunk_;
  Matrix logits_;
  T *weight_sums_ = nullptr, *bias_sums_ = nullptr;
};

}  // namespace
}  // namespace charlm::cuda
