// What the kernels that train read of their examples: tiles of up to 32 distinct contexts, each with the targets that
// follow it. Tokens and targets that are out of range are kBad.
#pragma once

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/token_ids.cuh"
#include "kernels/train_steps.h"

namespace charlm::cuda {
namespace {

inline constexpr int kTileRows = 32;
inline constexpr int kBad = -1;

// A tile as integers in memory. Of a batch the targets are there; of a full batch entries are numbered through.
struct TileRecord {
  const int* data;

  static constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(int));
  static constexpr int kEntryBegin = 1, kTargets = kEntryBegin + kTileRows + 1;
  static constexpr int kTokens = (kTargets + kTileRows + kVector - 1) / kVector * kVector;
  // Integers of a record, whole vectors.
  __host__ __device__ static int size(int context_length) {
    return (kTokens + kTileRows * context_length + kVector - 1) / kVector * kVector;
  }
  __device__ int rows() const { return data[0]; }
  __device__ int entry_begin(int row) const { return data[kEntryBegin + row]; }
  __device__ const int* targets() const { return data + kTargets; }
  // Key r * T + t is the token of row r at position t.
  __device__ int token(int key) const { return data[kTokens + key]; }
  // Those of as many keys as a vector has, from one of whole vectors on.
  __device__ uint4 tokens(int key) const { return *reinterpret_cast<const uint4*>(data + kTokens + key); }
};

__device__ inline int in_range(int64_t value, int64_t limit) {
  return value >= 0 && value < limit ? static_cast<int>(value) : kBad;
}

// Token t of a context, which may be kBad itself.
__device__ inline int context_token(const TokenIds& contexts, int64_t context, int t, int64_t vocab_size) {
  if (context < 0 || context >= contexts.rows) return kBad;
  int token = kBad;
  with_ids(contexts, [&](const auto* ids) {
    const auto id = ids[context * contexts.row_stride + t * contexts.position_stride];
    token = in_range(static_cast<int64_t>(id), vocab_size);
  });
  return token;
}

// What is neither an entry nor a token.
__device__ inline void fill_record(int* record, int length, int size) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < TileRecord::kTokens - TileRecord::kTargets - kTileRows)
    record[TileRecord::kTargets + kTileRows + lane] = 0;
  for (int i = TileRecord::kTokens + kTileRows * length + lane; i < size; i += kWarp) record[i] = 0;
}

// A warp makes a tile of up to 32 examples of one batch: each context of theirs once, in the order of its first
// example, with its targets in the order of theirs.
__global__ void __launch_bounds__(kWarp)
    make_batch_tiles(const Batches batches, int64_t vocab_size, int64_t tiles_of_batch, int64_t first_step,
                     int64_t steps, int64_t all_steps, int record_size, int* records) {
  const int lane = static_cast<int>(threadIdx.x), length = static_cast<int>(batches.contexts.context_length);
  // Of the steps that are made at a time: (models, steps, tiles_of_batch).
  const int64_t tile = blockIdx.x % tiles_of_batch, step = blockIdx.x / tiles_of_batch;
  const int64_t batch = step / steps * all_steps + first_step + step % steps;
  const int64_t first = tile * kTileRows, left = batches.size - first;
  const bool exists = lane < left;

  const int64_t example = exists ? batches.batch_indices[batch * batches.size + first + lane] : -1;
  const bool is_example = example >= 0 && example < batches.examples;
  const int64_t context = is_example && batches.context_index != nullptr ? batches.context_index[example]
                          : is_example                                   ? example
                                                                         : -1;
  int* tokens = reinterpret_cast<int*>(dynamic_shared());  // (32, T)
  for (int t = 0; t < length; ++t) {
    tokens[lane * length + t] = context_token(batches.contexts, context, t, vocab_size);
  }
  __syncwarp();
  int same = 0;  // the first lane with this context
  while (same < lane) {
    int t = 0;
    while (t < length && tokens[same * length + t] == tokens[lane * length + t]) ++t;
    if (t == length) break;
    ++same;
  }
  const unsigned firsts = __ballot_sync(kFullWarp, exists && same == lane);
  const int row_if_first = __popc(firsts & ((1u << lane) - 1));
  const int row = __shfl_sync(kFullWarp, row_if_first, same);  // of a lane without an example, anything
  int entry = 0, begin = 0;                                    // of this lane's example; of row `lane`
#pragma unroll 1
  for (int other = 0; other < kWarp; ++other) {
    const int other_row = __shfl_sync(kFullWarp, exists ? row : kTileRows, other);
    entry += other_row < row || (other_row == row && other < lane);
    begin += other_row < lane;
  }

  int* record = records + static_cast<int64_t>(blockIdx.x) * record_size;
  const int rows = __popc(firsts);
  if (lane == 0) {
    record[0] = rows;
    record[TileRecord::kEntryBegin + kTileRows] = static_cast<int>(left < kTileRows ? left : kTileRows);
  }
  record[TileRecord::kEntryBegin + lane] = begin;
  if (exists) {
    const int64_t target = is_example ? batches.targets[example] : -1;
    record[TileRecord::kTargets + entry] = in_range(target, vocab_size);
  } else {
    record[TileRecord::kTargets + lane] = kBad;
  }
  if (exists && same == lane) {
    for (int t = 0; t < length; ++t) {
      record[TileRecord::kTokens + row * length + t] = tokens[lane * length + t];
    }
  }
  if (lane >= rows) {  // rows that there are not
    for (int t = 0; t < length; ++t) record[TileRecord::kTokens + lane * length + t] = 0;
  }
  fill_record(record, length, record_size);
}

// A warp makes a tile of 32 of the contexts that every step takes.
__global__ void __launch_bounds__(kWarp)
    make_full_batch_tiles(const FullBatch batch, int64_t vocab_size, int record_size, int* records) {
  const int lane = static_cast<int>(threadIdx.x), length = static_cast<int>(batch.contexts.context_length);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTileRows, left = batch.contexts.rows - first;
  const int rows = static_cast<int>(left < kTileRows ? left : kTileRows);
  int* record = records + static_cast<int64_t>(blockIdx.x) * record_size;
  const auto entry_of = [&](int row) {
    const int64_t entry = batch.row_ptr[first + (row < rows ? row : rows)];
    return static_cast<int>(entry < 0 ? 0 : entry < batch.entries ? entry : batch.entries);
  };
  if (lane == 0) {
    record[0] = rows;
    record[TileRecord::kEntryBegin + kTileRows] = entry_of(kTileRows);
  }
  record[TileRecord::kEntryBegin + lane] = entry_of(lane);
  record[TileRecord::kTargets + lane] = kBad;
  for (int t = 0; t < length; ++t) {
    record[TileRecord::kTokens + lane * length + t] =
        lane < rows ? context_token(batch.contexts, first + lane, t, vocab_size) : 0;
  }
  fill_record(record, length, record_size);
}

inline constexpr int kEntryThreads = 256;

// The sum of the counts, as `kEntryThreads` parts that are added up in order.
__global__ void __launch_bounds__(kEntryThreads) sum_counts(const double* counts, int64_t entries, double* parts) {
  double sum = 0;
#pragma unroll 1
  for (int64_t entry = threadIdx.x; entry < entries; entry += kEntryThreads) sum += counts[entry];
  parts[threadIdx.x] = sum;
}
// Targets as classes, and what each entry weighs in the mean.
template <typename T>
__global__ void __launch_bounds__(kEntryThreads)
    read_entries(const FullBatch batch, int64_t vocab_size, const double* parts, int* targets, T* weights) {
  __shared__ double shared_total;
  if (threadIdx.x == 0) {
    double total = 0;
#pragma unroll 1
    for (int i = 0; i < kEntryThreads; ++i) total += parts[i];
    shared_total = total;
  }
  __syncthreads();
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * kEntryThreads + threadIdx.x;
  if (entry >= batch.entries) return;
  targets[entry] = in_range(batch.targets[entry], vocab_size);
  weights[entry] = static_cast<T>(batch.counts[entry] / shared_total);
}

// The tiles of a launch, in device memory: (models, steps, of_step), or (of_step,) that every step of every model
// takes.
template <typename T>
struct Tiles {
  const int* records;
  int record_size;
  int of_step;
  bool full;  // the same for every step of every model
  T weight;   // of an entry of a batch
  // Of a full batch: each entry's target and weight.
  const int* targets;
  const T* weights;

  __device__ const int* targets_of(const TileRecord& record) const { return full ? targets : record.targets(); }
  __device__ T entry_weight(int entry) const { return full ? weights[entry] : weight; }
};

// Copies the record that a block takes next while it works on the one before.
template <typename T>
class TileReader {
 public:
  // From `step` of all steps of the launch on, those of one model after those of another.
  __device__ TileReader(const Tiles<T>& tiles, int* shared, int64_t step)
      : shared_(shared),
        size_(tiles.record_size),
        first_(tiles.records + (tiles.full ? 0 : step * tiles.of_step * tiles.record_size)),
        last_(tiles.full ? first_ + static_cast<int64_t>(tiles.of_step - 1) * size_ : nullptr),
        next_(first_) {}

  // The next record, into the half that is not being read.
  __device__ void begin_copy() {
    half_ ^= 1;
    uint4* to = reinterpret_cast<uint4*>(shared_ + half_ * size_);
    const uint4* from = reinterpret_cast<const uint4*>(next_);
    next_ = next_ == last_ ? first_ : next_ + size_;
    for (int i = thread_in_block(); i < size_ / TileRecord::kVector; i += threads_of_block())
      copy_async(to + i, from + i);
  }
  // The record that was copied last: after wait_for_copies() and a barrier.
  __device__ TileRecord current() const { return {shared_ + half_ * size_}; }

 private:
  int* shared_;
  int size_, half_ = 1;
  const int *first_, *last_, *next_;  // of a full batch the first one follows the last
};

}  // namespace
}  // namespace charlm::cuda
