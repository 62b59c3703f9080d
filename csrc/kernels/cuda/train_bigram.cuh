// Many training steps of a bigram model by one block of threads: its matrix of logits stays in shared memory. The
// formula is in kernels/bigram.h.
#pragma once

#include "kernels/cuda/train_block.cuh"
#include "kernels/cuda/train_softmax.cuh"

namespace charlm::cuda {
namespace {

// The matrix (V, classes) in shared memory, row by row, a row for each token; a gradient and each tensor of the
// optimizer's state look the same.
struct BigramBlockLayout {
  int vocab_size = 0, class_strips = 0;

  __host__ __device__ int classes() const { return class_strips * kTile; }  // from one row to the next
  __host__ __device__ int size() const { return vocab_size * classes(); }
  __host__ __device__ int parameters() const { return 1; }
  // Values of shared memory beside the model.
  __host__ __device__ int own_values() const { return class_strips * kRowPitch * kTile; }
  __host__ __device__ int own_bytes() const { return 0; }

  // One block has all of it.
  static int most_ranks(const ModelShape&) { return 1; }
  static BigramBlockLayout of(const ModelShape& shape, int) {
    BigramBlockLayout layout;
    layout.vocab_size = static_cast<int>(shape.vocab_size);
    layout.class_strips = strips_of(layout.vocab_size);
    return layout;
  }
};

template <typename T>
class BigramBlock : public TrainingBlock<T, BigramBlockLayout, BigramBlock<T>> {
  using Base = TrainingBlock<T, BigramBlockLayout, BigramBlock<T>>;
  friend Base;

 public:
  __device__ explicit BigramBlock(const BlockTraining<T, BigramBlockLayout>& training) : Base(training) {
    logits_ = this->take(l_.own_values());
  }

 private:
  using Base::l_, Base::p_, Base::thread_, Base::kThreads, Base::trained_, Base::row_losses_;

  __device__ void start() {}

  __device__ T sum_of_squares() {
    const T sum = block_sum(squares<kThreads>(trained_.gradient, trained_.size), row_losses_);
    if (thread_ == 0) row_losses_[kWarp] = sum;
    __syncthreads();
    return row_losses_[kWarp];
  }

  // The loss, in thread 0. The gradient is complete after a barrier.
  __device__ T run_tile(const TileRecord& record, T softcap, bool is_first) {
    forward_softmax(record, softcap);
    if (is_first) {
#pragma unroll 1
      for (int i = thread_; i < trained_.size; i += kThreads) trained_.gradient[i] = 0;
    }
    __syncthreads();
    backward_weight(record);
    return thread_ < kWarp ? sum_row_losses(row_losses_, record.rows()) : T(0);
  }

  __device__ void forward_softmax(const TileRecord& record, T softcap) {
#pragma unroll 1
    for (int row = thread_ / kRowLanes; row < kTileRows; row += kThreads / kRowLanes) {
      const int token = row < record.rows() ? record.token(row) : 0;
      const T* weight = trained_.parameters + (token == kBad ? 0 : token) * l_.classes();
#pragma unroll 1
      for (int strip = thread_ % kRowLanes; strip < l_.class_strips; strip += kRowLanes) {
        Four<T> z = load_four(weight + strip * kTile);
#pragma unroll
        for (int j = 0; j < kTile; ++j) {
          if (token == kBad) z.values[j] = not_a_number<T>();
          if (strip * kTile + j >= l_.vocab_size) z.values[j] = kLowest<T>;
        }
        store_four(vector_at(logits_, kRowPitch, strip, row), z);
      }
      const T loss = softmax_row(p_.tiles, record, row, l_.class_strips, softcap, logits_);
      if (thread_ % kRowLanes == 0) row_losses_[row] = loss;
    }
  }

  // d weight[v] = the sum of dz of the rows whose token is v: a group of threads has every row of these.
  __device__ void backward_weight(const TileRecord& record) {
    const int lanes = l_.classes() < kThreads ? l_.classes() : kThreads, groups = kThreads / lanes;
    const int group = thread_ / lanes;
#pragma unroll 1
    for (int row = 0; row < record.rows(); ++row) {
      const int token = record.token(row);
      if (token == kBad || token % groups != group) continue;
#pragma unroll 1
      for (int c = thread_ % lanes; c < l_.vocab_size; c += lanes) {
        trained_.gradient[token * l_.classes() + c] += vector_at(logits_, kRowPitch, c / kTile, row)[c % kTile];
      }
    }
  }

  template <typename Function>
  __device__ void for_each_value_of(T* array, T* const* tensors, const Function& function) {
#pragma unroll 1
    for (int i = thread_; i < l_.vocab_size * l_.vocab_size; i += kThreads) {
      function(array + i / l_.vocab_size * l_.classes() + i % l_.vocab_size, tensors[0] + i, true);
    }
  }

  T* logits_;
};

template <typename T>
__global__ void __launch_bounds__(kTrainThreads<T>, 1)
    train_bigram(const __grid_constant__ BlockTraining<T, BigramBlockLayout> training) {
  BigramBlock<T>(training).run();
}

}  // namespace
}  // namespace charlm::cuda
