#include "kernels/cuda/train_bigram.cuh"
#include "kernels/cuda/train_mlp.cuh"
#include "kernels/train_steps.h"

namespace charlm::cuda {
namespace {

// A launch makes so many steps at most, some milliseconds for the lecture's model: what comes between two of them takes
// some microseconds. Fewer where the tiles of these steps would take more memory than this.
constexpr int64_t kStepsOfLaunch = 512, kRecordBytes = int64_t{1} << 28;

// A model on the current device: its layout, and which of its arrays shared memory has room for.
template <typename T, typename Layout>
class BlockLaunch {
 public:
  using Kernel = void (*)(BlockTraining<T, Layout>);

  BlockLaunch(Kernel kernel, const ModelShape& shape, int states) : kernel_(kernel), shape_(shape) {
    training_.states = states;
    training_.tiles.record_size = TileRecord::size(static_cast<int>(shape.context_length));
  }

  // Chooses how many blocks have a model together: as few as have room for it, or as many more as leave no
  // multiprocessor two of them. Returns how many these are; 0 where it does not fit.
  int fit(int64_t models) {
    DeviceLimits limits;
    if (DeviceLimits::read(&limits) != cudaSuccess) return 0;
    const int most = limits.capability >= kClusterCapability ? Layout::most_ranks(shape_) : 1;
    int chosen = 0;
    for (int ranks = 1; ranks <= most; ranks *= 2) {
      const bool is_useful = chosen == 0 || models * ranks <= limits.multiprocessors;
      if (is_useful && fits(ranks, limits)) chosen = ranks;
    }
    return chosen > 0 && fits(chosen, limits) ? chosen : 0;
  }

  Error run(const Training<T>& training, const Tiles<T>& tiles, int64_t first_step, int64_t steps,
            DeviceLibrary& library, Stream stream) {
    training_.tensors = training.tensors;
    training_.options = training.options;
    training_.rates = training.rates;
    training_.losses = training.losses;
    training_.all_steps = training.steps;
    training_.first_step = first_step;
    training_.steps = static_cast<int>(steps);
    training_.tiles = tiles;
    const int64_t blocks = training.models * training_.ranks;
    const int64_t values = blocks * training_.arrays_in_memory() * training_.layout.size();
    if (training_.workspace == nullptr) training_.workspace = library.allocate_values<T>(values);
    return launch_in_clusters(kernel_, training_.ranks, blocks, dim3(kTrainThreads<T>), training_.shared_bytes(),
                              stream, training_);
  }

 private:
  // Whether the shared memory of each block has room for its parameters at least; the gradient and the state follow if
  // they fit too.
  bool fits(int ranks, const DeviceLimits& limits) {
    training_.layout = Layout::of(shape_, ranks);
    training_.ranks = ranks;
    training_.shared_arrays = training_.arrays();
    while (training_.shared_bytes() > limits.block_shared_bytes && training_.shared_arrays > 0) {
      --training_.shared_arrays;
    }
    if (training_.shared_bytes() > limits.block_shared_bytes) return false;
    int blocks = 0;
    const Error error = blocks_at_once(kernel_, kTrainThreads<T>, training_.shared_bytes(), &blocks);
    return error == cudaSuccess && blocks > 0;
  }

  Kernel kernel_;
  const ModelShape& shape_;
  BlockTraining<T, Layout> training_{};
};

// Numbers of 32 bits count what is in shared memory, and SmallDivisor divides it: whatever is larger does not fit.
bool has_small_sizes(const ModelShape& shape) {
  constexpr int64_t kMost = 1 << 16;
  const auto is_small = [](int64_t a, int64_t b) { return a < kMost && b < kMost && a * b < kMost; };
  return is_small(shape.vocab_size, shape.is_bigram() ? shape.vocab_size : shape.embedding_dim) &&
         is_small(shape.context_length, shape.embedding_dim) &&
         is_small(shape.context_length * shape.embedding_dim + 1, shape.hidden_dim + 1) &&
         is_small(shape.vocab_size, shape.hidden_dim + 1) &&
         is_small(shape.vocab_size, shape.context_length * shape.embedding_dim + 1);
}

// Calls function(launch) with what trains a model of this shape.
template <typename T, typename Function>
auto with_launch(const ModelShape& shape, int states, const Function& function) {
  if (shape.is_bigram()) {
    BlockLaunch<T, BigramBlockLayout> launch(train_bigram<T>, shape, states);
    return function(launch);
  }
  BlockLaunch<T, MlpBlockLayout> launch(train_mlp<T>, shape, states);
  return function(launch);
}

int tiles_of(int64_t rows) { return static_cast<int>((rows + kTileRows - 1) / kTileRows); }

// All steps, so many at a time: prepare(first, steps) makes their tiles.
template <typename T, typename Prepare>
Error train_in_launches(const Training<T>& training, const Tiles<T>& tiles, int64_t at_once, DeviceLibrary& library,
                        Stream stream, const Prepare& prepare) {
  return with_launch<T>(training.shape, static_cast<int>(training.states), [&](auto& block) {
    if (block.fit(training.models) == 0) return Error{cudaErrorInvalidValue};
    for (int64_t first = 0; first < training.steps; first += at_once) {
      const int64_t left = training.steps - first, steps = left < at_once ? left : at_once;
      if (const Error error = prepare(first, steps)) return error;
      if (const Error error = block.run(training, tiles, first, steps, library, stream)) return error;
    }
    return Error{cudaSuccess};
  });
}

}  // namespace

template <typename T>
int blocks_of_model(const ModelShape& shape, int64_t models) {
  return has_small_sizes(shape) ? with_launch<T>(shape, 0, [&](auto& launch) { return launch.fit(models); }) : 0;
}

template <typename T>
Error train_batches(const Training<T>& training, const Batches& batches, DeviceLibrary& library, Stream stream) {
  const int length = static_cast<int>(training.shape.context_length);
  Tiles<T> tiles{};
  tiles.record_size = TileRecord::size(length);
  tiles.of_step = tiles_of(batches.size);
  tiles.weight = T(1) / static_cast<T>(batches.size);
  const int64_t step_values = training.models * tiles.of_step * tiles.record_size;
  const int64_t fit = kRecordBytes / static_cast<int64_t>(sizeof(int)) / step_values;
  const int64_t at_once = fit < 1 ? 1 : fit < kStepsOfLaunch ? fit : kStepsOfLaunch;
  int* records = library.allocate_values<int>((training.steps < at_once ? training.steps : at_once) * step_values);
  tiles.records = records;
  const int64_t shared_bytes = kTileRows * length * static_cast<int64_t>(sizeof(int));
  return train_in_launches(training, tiles, at_once, library, stream, [&](int64_t first, int64_t steps) {
    return launch(make_batch_tiles, training.models * steps * tiles.of_step, dim3(kWarp), shared_bytes, stream, batches,
                  training.shape.vocab_size, tiles.of_step, first, steps, training.steps, tiles.record_size, records);
  });
}

template <typename T>
Error train_full_batch(const Training<T>& training, const FullBatch& batch, DeviceLibrary& library, Stream stream) {
  const int64_t vocab_size = training.shape.vocab_size;
  Tiles<T> tiles{};
  tiles.full = true;
  tiles.record_size = TileRecord::size(static_cast<int>(training.shape.context_length));
  tiles.of_step = tiles_of(batch.contexts.rows);
  int* records = library.allocate_values<int>(static_cast<int64_t>(tiles.of_step) * tiles.record_size);
  int* targets = library.allocate_values<int>(batch.entries);
  T* weights = library.allocate_values<T>(batch.entries);
  double* sums = library.allocate_values<double>(kEntryThreads);
  tiles.records = records;
  tiles.targets = targets;
  tiles.weights = weights;
  const int64_t blocks = (batch.entries + kEntryThreads - 1) / kEntryThreads;
  const dim3 threads(kEntryThreads);
  if (const Error error = launch(sum_counts, 1, threads, 0, stream, batch.counts, batch.entries, sums)) return error;
  if (const Error error =
          launch(read_entries<T>, blocks, threads, 0, stream, batch, vocab_size, sums, targets, weights)) {
    return error;
  }
  if (const Error error = launch(make_full_batch_tiles, tiles.of_step, dim3(kWarp), 0, stream, batch, vocab_size,
                                 tiles.record_size, records)) {
    return error;
  }
  return train_in_launches(training, tiles, kStepsOfLaunch, library, stream,
                           [](int64_t, int64_t) { return Error{cudaSuccess}; });
}

#define CHARLM_INSTANTIATE(T)                                                               \
  template int blocks_of_model<T>(const ModelShape&, int64_t);                              \
  template Error train_batches(const Training<T>&, const Batches&, DeviceLibrary&, Stream); \
  template Error train_full_batch(const Training<T>&, const FullBatch&, DeviceLibrary&, Stream);
CHARLM_INSTANTIATE(float)
CHARLM_INSTANTIATE(double)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::cuda
