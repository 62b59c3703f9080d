// Few classes: many short rows without gaps between them, the character model's case.
//
// A row of 27 bfloat16 is 54 bytes, so rows begin anywhere and a warp per row would leave most lanes idle. A block
// therefore takes a tile of some hundred rows as one flat piece of memory, moved in vectors of 16 bytes whatever the
// row length, and divides it into rows in shared memory only: 8 logits a lane, so 4 lanes for a row of 27 and 8 rows
// for a warp. What is done once a row (target, logarithm, loss) is done by one thread a row, not by each of its lanes.
// The gradient replaces the logits in the tile, and leaves as it came. Device memory sees each byte once.
#pragma once

#include "kernels/cuda/softmax_row.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kNarrowClasses = 512;
inline constexpr int kNarrowThreads = 256;
inline constexpr int kNarrowChunk = 8;  // logits that a lane holds at a time
// Several tiles fit into the 100 KB and more of a multiprocessor, so that some compute while others wait for memory.
inline constexpr int kNarrowTileBytes = 16384;
inline constexpr int kNarrowMaxRows = 512;

// How a tile is cut: lanes for a row, and rows.
struct NarrowTile {
  int lanes, rows;

  static NarrowTile of(int64_t classes, int64_t element_size) {
    NarrowTile tile{1, 0};
    while (tile.lanes < kWarp && tile.lanes * kNarrowChunk < classes) tile.lanes *= 2;
    const int at_once = kNarrowThreads / tile.lanes;
    const int64_t fitting = kNarrowTileBytes / (classes * element_size) / at_once * at_once;
    tile.rows = static_cast<int>(fitting < at_once ? at_once : fitting > kNarrowMaxRows ? kNarrowMaxRows : fitting);
    return tile;
  }
};

template <typename T>
bool is_flat(const ClassMatrix& matrix, const CrossEntropy<T>& p) {
  return matrix.class_stride == 1 && matrix.inner == 1 && (matrix.outer_stride == p.classes || p.rows == 1);
}

template <typename T>
bool is_narrow(const CrossEntropy<T>& p) {
  return p.classes > 0 && p.classes <= kNarrowClasses && p.target != nullptr && is_flat(p.input, p) &&
         (p.input_gradient.data == nullptr || is_flat(p.input_gradient, p));
}

// The shared memory of a tile. Rows' values are the parts of their softmax first, then what their gradients are made
// of.
template <typename S>
struct NarrowMemory {
  using T = Compute<S>;
  T *shift, *sum, *total, *product, *scratch;  // sum becomes factor, total scale, product index_scale
  int* target;                                 // class, or one of the two below
  S* logits;

  static constexpr int kNoTarget = -1, kIgnored = -2;

  static int64_t bytes(const NarrowTile& tile, int64_t classes) {
    const int64_t logits = (tile.rows * classes * sizeof(S) + 2 * kVectorBytes - 1) / kVectorBytes * kVectorBytes;
    return logits + (4 * tile.rows + kWarp) * sizeof(T) + tile.rows * sizeof(int);
  }

  // `source` decides where in a vector the tile begins, so that it lies in shared memory as it does outside.
  __device__ NarrowMemory(int rows, int64_t classes, const S* source) {
    unsigned char* memory = dynamic_shared();
    logits = reinterpret_cast<S*>(memory) + reinterpret_cast<uintptr_t>(source) % kVectorBytes / sizeof(S);
    memory += (rows * classes * sizeof(S) + 2 * kVectorBytes - 1) / kVectorBytes * kVectorBytes;
    shift = reinterpret_cast<T*>(memory);
    sum = shift + rows;
    total = sum + rows;
    product = total + rows;
    scratch = product + rows;
    target = reinterpret_cast<int*>(scratch + kWarp);
  }
};

// Copies `count` elements by all threads of the block, in vectors where both sides are aligned alike.
template <typename S>
__device__ inline void copy_flat(S* to, const S* from, int64_t count) {
  const int thread = thread_in_block(), threads = threads_of_block();
  int64_t head = misaligned_head(from);
  const bool alike = misaligned_head(static_cast<const S*>(to)) == head;
  if (!alike || head > count) head = count;
  const int64_t vectors = (count - head) / kVectorWidth<S>;
  const int64_t tail = head + vectors * kVectorWidth<S>;
  for (int64_t i = thread; i < head; i += threads) to[i] = from[i];
  // As vectors of no type in particular: of others the compiler makes four stores.
  const uint4* from_vectors = reinterpret_cast<const uint4*>(from + head);
  uint4* to_vectors = reinterpret_cast<uint4*>(to + head);
#pragma unroll 4
  for (int64_t v = thread; v < vectors; v += threads) to_vectors[v] = from_vectors[v];
  for (int64_t i = tail + thread; i < count; i += threads) to[i] = from[i];
}

// The part of a row that falls to one of its lanes.
template <typename S, bool kPlain>
__device__ inline SoftmaxPart<Compute<S>> narrow_part(const CrossEntropy<Compute<S>>& p, const S* row, int lane,
                                                      int lanes) {
  using T = Compute<S>;
  const int classes = static_cast<int>(p.classes);
  SoftmaxPart<T> part;
  for (int begin = lane; begin < classes; begin += kNarrowChunk * lanes) {
    T z[kNarrowChunk], largest = kLowest<T>;
#pragma unroll
    for (int k = 0; k < kNarrowChunk; ++k) {
      const int c = begin + k * lanes;
      // Loads without a condition share the computation of their addresses.
      const T input = to_compute(row[c < classes ? c : begin]);
      z[k] = c < classes ? logit<T, kPlain>(p, input) : -static_cast<T>(INFINITY);
      largest = larger(largest, z[k]);
    }
    part.raise_shift(largest);
#pragma unroll
    for (int k = 0; k < kNarrowChunk; ++k) {
      part.sum += fast_exp(z[k] - part.shift);
      if constexpr (!kPlain) {
        const int c = begin + k * lanes;
        if (p.label_smoothing != 0 && c < classes) {
          const T a = spread_coefficient(p, c, T(0));
          part.total += a;
          part.product += a * (z[k] - part.shift);
        }
      }
    }
  }
  return part;
}

template <typename S, bool kPlain>
__global__ void __launch_bounds__(kNarrowThreads, sizeof(S) == sizeof(double) ? 2 : 4)
    narrow_rows(const CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>> run, const NarrowTile tile) {
  using T = Compute<S>;
  const int64_t first = blockIdx.x * static_cast<int64_t>(tile.rows);
  const int64_t left = p.rows - first;
  const int rows = left < tile.rows ? static_cast<int>(left) : tile.rows;
  const S* source = static_cast<const S*>(p.input.data) + first * p.classes;
  const NarrowMemory<S> memory(tile.rows, p.classes, source);
  copy_flat(memory.logits, source, rows * p.classes);
  const bool has_gradient = p.input_gradient.data != nullptr;
  const T scale = has_gradient ? gradient_scale<S>(p, run) : T(0);
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % tile.lanes, classes = static_cast<int>(p.classes);
  const int first_row = static_cast<int>(threadIdx.x) / tile.lanes, row_step = kNarrowThreads / tile.lanes;
  if (!p.lse_is_known || (!kPlain && total_is_unknown(p))) {
    for (int r = first_row; r < tile.rows; r += row_step) {  // all lanes of a warp go round as often
      SoftmaxPart<T> part;
      if (r < rows) part = narrow_part<S, kPlain>(p, memory.logits + r * classes, lane, tile.lanes);
      part = merge_lanes<T, kPlain>(part, tile.lanes);
      if (lane != 0) continue;
      memory.shift[r] = part.shift;
      memory.sum[r] = part.sum;
      memory.total[r] = part.total;
      memory.product[r] = part.product;
    }
    __syncthreads();
  }

  T loss = 0, mean_weight = 0;
  for (int r = static_cast<int>(threadIdx.x); r < rows; r += kNarrowThreads) {
    const RowTarget<T> target = row_target(p, first + r);
    SoftmaxPart<T> part;
    if (!p.lse_is_known || (!kPlain && total_is_unknown(p))) {
      part = {memory.shift[r], memory.sum[r], memory.total[r], memory.product[r]};
    }
    T log_sum;
    if (p.lse_is_known) {
      part.shift = p.shift[first + r];
      log_sum = p.log_sum[first + r];
      part.sum = exp(log_sum);
    } else {
      log_sum = log(part.sum);
      p.shift[first + r] = part.shift;
      p.log_sum[first + r] = log_sum;
      const T target_input = target.index >= 0 ? to_compute(memory.logits[r * classes + target.index]) : T(0);
      const T row = row_loss<T, kPlain>(p, target, part, target_input);
      if (run.row_loss != nullptr) run.row_loss[first + r] = row;
      loss += row;
      mean_weight += target.mean_weight;
    }
    if (has_gradient) {
      const RowGradient<T> row =
          row_gradient<T, kPlain>(p, first + r, target, part.shift, part.sum, log_sum, part.total, scale);
      memory.shift[r] = row.shift;
      memory.sum[r] = row.factor;
      memory.total[r] = row.scale;
      memory.product[r] = row.index_scale;
      memory.target[r] = row.ignored    ? NarrowMemory<S>::kIgnored
                         : target.valid ? static_cast<int>(target.index)
                                        : NarrowMemory<S>::kNoTarget;
    }
  }
  write_parts(run, loss, mean_weight, memory.scratch);
  if (!has_gradient) return;

  __syncthreads();
  for (int r = first_row; r < rows; r += row_step) {
    const int y = memory.target[r];
    const RowGradient<T> row{
        memory.shift[r], T(0), memory.sum[r], memory.total[r], memory.product[r], y == NarrowMemory<S>::kIgnored};
    S* logits = memory.logits + r * classes;
    for (int c = lane; c < classes; c += tile.lanes) {
      logits[c] = to_storage<S>(input_gradient<T, kPlain>(p, row, to_compute(logits[c]), c == y, c, T(0)));
    }
  }
  __syncthreads();
  copy_flat(static_cast<S*>(p.input_gradient.data) + first * p.classes, static_cast<const S*>(memory.logits),
            rows * p.classes);
}

}  // namespace
}  // namespace charlm::cuda
