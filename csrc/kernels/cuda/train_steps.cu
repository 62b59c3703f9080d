#include "kernels/cuda/train_bigram.cuh"
#include "kernels/cuda/train_mlp.cuh"
#include "kernels/train_steps.h"

namespace charlm::cuda {
namespace {

// What the tiles of a launch may take of memory: launches of fewer steps have fewer of them.
constexpr int64_t kRecordBytes = int64_t{1} << 28;

// A model on the current device: its layout, and which of its arrays shared memory has room for.
template <typename T, typename Layout>
class BlockLaunch {
 public:
  using Kernel = void (*)(BlockTraining<T, Layout>);

  BlockLaunch(Kernel kernel, const ModelShape& shape, int states) : kernel_(kernel) {
    training_.layout = Layout::of(shape, kTrainThreads<T>);
    training_.states = states;
    training_.tiles.record_size = TileRecord::size(static_cast<int>(shape.context_length));
  }

  // Whether shared memory has room for the parameters at least; the gradient and the state follow if they fit too.
  bool fit() {
    DeviceLimits limits;
    if (DeviceLimits::read(&limits) != cudaSuccess) return false;
    training_.shared_arrays = training_.arrays();
    while (training_.shared_bytes() > limits.block_shared_bytes && training_.shared_arrays > 0) {
      --training_.shared_arrays;
    }
    if (training_.shared_bytes() > limits.block_shared_bytes) return false;
    int blocks = 0;
    const Error error = blocks_at_once(kernel_, kTrainThreads<T>, training_.shared_bytes(), &blocks);
    return error == cudaSuccess && blocks > 0;
  }

  Error run(const Training<T>& training, const Tiles<T>& tiles, int64_t first_step, int64_t steps,
            DeviceLibrary& library, Stream stream) {
    training_.tensors = training.tensors;
    training_.options = training.options;
    training_.rates = training.rates;
    training_.losses = training.losses;
    training_.all_steps = training.steps;
    training_.first_step = first_step;
    training_.steps = steps;
    training_.tiles = tiles;
    const int64_t values = training.models * training_.arrays_in_memory() * training_.layout.size();
    if (training_.workspace == nullptr) training_.workspace = library.allocate_values<T>(values);
    return launch(kernel_, training.models, dim3(kTrainThreads<T>), training_.shared_bytes(), stream, training_);
  }

 private:
  Kernel kernel_;
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

int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

}  // namespace

template <typename T>
bool fits_in_block(const ModelShape& shape) {
  return has_small_sizes(shape) && with_launch<T>(shape, 0, [](auto& launch) { return launch.fit(); });
}

template <typename T>
Error train_batches(const Training<T>& training, const Batches& batches, DeviceLibrary& library, Stream stream) {
  const int length = static_cast<int>(training.shape.context_length), record_size = TileRecord::size(length);
  Tiles<T> tiles{};
  tiles.record_size = record_size;
  tiles.of_step = tiles_of(batches.size);
  tiles.weight = T(1) / static_cast<T>(batches.size);
  const int64_t step_bytes = training.models * tiles.of_step * record_size * static_cast<int64_t>(sizeof(int));
  const int64_t most = step_bytes < kRecordBytes ? kRecordBytes / step_bytes : 1;
  const int64_t at_once = training.steps < most ? training.steps : most;
  int* records = library.allocate_values<int>(at_once * step_bytes / static_cast<int64_t>(sizeof(int)));
  tiles.records = records;
  return with_launch<T>(training.shape, static_cast<int>(training.states), [&](auto& block) {
    if (!block.fit()) return Error{cudaErrorInvalidValue};
    for (int64_t first = 0; first < training.steps; first += at_once) {
      const int64_t steps = training.steps - first < at_once ? training.steps - first : at_once;
      const Error error =
          launch(make_batch_tiles, training.models * steps * tiles.of_step, dim3(kWarp),
                 kTileRows * length * static_cast<int64_t>(sizeof(int)), stream, batches, training.shape.vocab_size,
                 tiles.of_step, first, steps, training.steps, record_size, records);
      if (error != cudaSuccess) return error;
      if (const Error failed = block.run(training, tiles, first, steps, library, stream)) return failed;
    }
    return Error{cudaSuccess};
  });
}

template <typename T>
Error train_full_batch(const Training<T>& training, const FullBatch& batch, DeviceLibrary& library, Stream stream) {
  const int record_size = TileRecord::size(static_cast<int>(training.shape.context_length));
  const int64_t vocab_size = training.shape.vocab_size;
  Tiles<T> tiles{};
  tiles.full = true;
  tiles.record_size = record_size;
  tiles.of_step = tiles_of(batch.contexts.rows);
  int* records = library.allocate_values<int>(tiles.of_step * record_size);
  int* targets = library.allocate_values<int>(batch.entries);
  T* weights = library.allocate_values<T>(batch.entries);
  double* parts = library.allocate_values<double>(kEntryThreads);
  tiles.records = records;
  tiles.targets = targets;
  tiles.weights = weights;
  const int64_t blocks = (batch.entries + kEntryThreads - 1) / kEntryThreads;
  const dim3 threads(kEntryThreads);
  if (const Error error = launch(sum_counts, 1, threads, 0, stream, batch.counts, batch.entries, parts)) return error;
  if (const Error error =
          launch(read_entries<T>, blocks, threads, 0, stream, batch, vocab_size, parts, targets, weights)) {
    return error;
  }
  if (const Error error = launch(make_full_batch_tiles, tiles.of_step, dim3(kWarp), 0, stream, batch, vocab_size,
                                 record_size, records)) {
    return error;
  }
  return with_launch<T>(training.shape, static_cast<int>(training.states), [&](auto& block) {
    if (!block.fit()) return Error{cudaErrorInvalidValue};
    return block.run(training, tiles, 0, training.steps, library, stream);
  });
}

#define CHARLM_INSTANTIATE(T)                                                               \
  template bool fits_in_block<T>(const ModelShape&);                                        \
  template Error train_batches(const Training<T>&, const Batches&, DeviceLibrary&, Stream); \
  template Error train_full_batch(const Training<T>&, const FullBatch&, DeviceLibrary&, Stream);
CHARLM_INSTANTIATE(float)
CHARLM_INSTANTIATE(double)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::cuda
