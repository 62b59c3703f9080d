// Blocks of threads that train a model for many steps, one or a cluster: their memory, and the order of the steps. What
// a tile of rows does to the gradient is the model's own matter: train_mlp.cuh, train_bigram.cuh.
#pragma once

#include "kernels/cuda/block_products.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/train_tiles.cuh"
#include "kernels/cuda/train_update.cuh"

namespace charlm::cuda {
namespace {

template <typename T>
inline constexpr int kTrainThreads = sizeof(T) == sizeof(float) ? 512 : 256;

// A layout says where a block has its parameters in an array of size() values, and what shared memory it needs beside
// it: own_values(), and own_bytes() of something else.
template <typename T, typename Layout>
struct BlockTraining {
  Layout layout;
  int states;
  T* const* tensors;  // these are as in Training
  const ModelOptions<T>* options;
  const Rates<T>* rates;
  T* losses;
  int64_t all_steps, first_step;  // of the call; those before this launch
  int steps;                      // of this launch
  Tiles<T> tiles;
  int ranks;          // blocks of a model
  int shared_arrays;  // of gradient and states, in this order, those in shared memory
  T* workspace;       // (blocks, the other arrays, size)

  __host__ __device__ int arrays() const { return 1 + states; }
  __host__ __device__ int arrays_in_memory() const { return arrays() - shared_arrays; }
  __host__ __device__ int shared_values() const {
    return (1 + shared_arrays) * layout.size() + layout.own_values() + 2 * kWarp;
  }
  int64_t shared_bytes() const {
    return shared_values() * static_cast<int64_t>(sizeof(T)) + layout.own_bytes() +
           2 * tiles.record_size * static_cast<int64_t>(sizeof(int));
  }
};

// Model is the class derived from this one. It has
//   run_tile(record, softcap, is_first), which returns the tile's loss in thread 0, and leaves the gradient of this
//   block's parameters complete after a barrier;
//   sum_of_squares(), of the gradient of the whole model, in all threads;
//   start(), which sets what is not 0 at the beginning;
//   for_each_value_of(array, tensors, function), which calls function(value in the array, value in a tensor, whether no
//   other block has it as well).
template <typename T, typename Layout, typename Model>
class TrainingBlock {
 public:
  __device__ void run() {
    load();
    const ModelOptions<T> options = p_.options[number_];
    const int tiles = p_.tiles.of_step;
    const int64_t first = number_ * p_.all_steps + p_.first_step;
    const Rates<T>* rates_of_step = p_.rates + first;
    T* loss_of_step = p_.losses + first;
    TileReader<T> reader(p_.tiles, records_, number_ * p_.steps);
    reader.begin_copy();
    wait_for_copies();
    model_barrier();
#pragma unroll 1
    for (int step = 0; step < p_.steps; ++step) {
      const Rates<T> rates = *rates_of_step++;
      T loss = 0;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        const TileRecord now = reader.current();
        if (tile + 1 < tiles || step + 1 < p_.steps) reader.begin_copy();
        loss += model().run_tile(now, options.softcap, tile == 0);
        wait_for_copies();
        __syncthreads();
      }
      T scale = 1;
      if (options.update.max_grad_norm != 0) scale = clip_scale(options.update, model().sum_of_squares());
      update<kThreads>(p_.states, options.update, rates, scale, trained_);
      if (thread_ == 0 && rank_ == 0) *loss_of_step = loss;
      ++loss_of_step;
      __syncthreads();
    }
    store();
  }

 protected:
  static constexpr int kThreads = kTrainThreads<T>;

  __device__ explicit TrainingBlock(const BlockTraining<T, Layout>& training)
      : p_(training),
        l_(training.layout),
        thread_(thread_in_block()),
        rank_(training.ranks > 1 ? cluster_rank() : 0),
        number_(static_cast<int>(blockIdx.x) / training.ranks),
        shared_(reinterpret_cast<T*>(dynamic_shared())) {
    trained_.size = l_.size();
    trained_.parameters = take(trained_.size);
    T* in_memory = workspace();
    const auto array = [&](int number) {
      if (number < p_.shared_arrays) return take(trained_.size);
      T* const taken = in_memory;
      in_memory += trained_.size;
      return taken;
    };
    trained_.gradient = array(0);
    for (int i = 0; i < 2; ++i) trained_.states[i] = i < p_.states ? array(1 + i) : nullptr;
    row_losses_ = take(2 * kWarp);
    own_memory_ = reinterpret_cast<unsigned char*>(shared_ + l_.own_values());
    records_ = reinterpret_cast<int*>(own_memory_ + l_.own_bytes());
  }
  __device__ void* own_memory() const { return own_memory_; }
  // Of all blocks of the model.
  __device__ void model_barrier() const {
    if (p_.ranks > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }
  // Calls function(the same place in another block of the model) for each of them, this one too.
  template <typename Function>
  __device__ void in_each_block(T* place, const Function& function) const {
#pragma unroll 1
    for (int rank = 0; rank < p_.ranks; ++rank) {
      function(rank == rank_ ? place : static_cast<T*>(in_block(place, rank)));
    }
  }
  // The next of the block's shared memory.
  __device__ T* take(int values) {
    T* const taken = shared_;
    shared_ += values;
    return taken;
  }

  const BlockTraining<T, Layout>& p_;
  const Layout& l_;
  const int thread_, rank_;
  const int64_t number_;  // of the model
  Trained<T> trained_;
  T* row_losses_;

 private:
  __device__ T* workspace() const {
    return p_.workspace + static_cast<int64_t>(blockIdx.x) * p_.arrays_in_memory() * trained_.size;
  }
  __device__ Model& model() { return static_cast<Model&>(*this); }

  // Everything is 0 where it is not a parameter or state; all of it is there after a barrier.
  __device__ void load() {
    T* values = reinterpret_cast<T*>(dynamic_shared());
#pragma unroll 1
    for (int i = thread_; i < p_.shared_values(); i += kThreads) values[i] = 0;
    T* const in_memory = workspace();
#pragma unroll 1
    for (int i = thread_; i < p_.arrays_in_memory() * trained_.size; i += kThreads) in_memory[i] = 0;
    __syncthreads();
    model().start();
    for_each_value([](T* in_array, T* in_tensor, bool) { *in_array = *in_tensor; });
  }
  __device__ void store() {
    for_each_value([&](T* in_array, T* in_tensor, bool is_only_here) {
      if (is_only_here || rank_ == 0) *in_tensor = *in_array;
    });
  }
  template <typename Function>
  __device__ void for_each_value(const Function& function) {
    T* const* tensors = p_.tensors + number_ * p_.arrays() * l_.parameters();
    model().for_each_value_of(trained_.parameters, tensors, function);
    if (p_.states > 0) model().for_each_value_of(trained_.states[0], tensors + l_.parameters(), function);
    if (p_.states > 1) model().for_each_value_of(trained_.states[1], tensors + 2 * l_.parameters(), function);
  }

  T* shared_;
  unsigned char* own_memory_;
  int* records_;
};

}  // namespace
}  // namespace charlm::cuda
