// Few classes in short rows without gaps between them: the character model's case.
//
// A row of 27 bfloat16 is 54 bytes: rows begin anywhere, and none is made of whole vectors of 16 bytes. A block
// therefore copies some hundred rows to shared memory as one flat piece, in vectors whatever the row length, and
// divides it into rows only there: a thread for a row of up to 64 classes, several for longer ones. The gradient
// replaces the logits in shared memory, and leaves as they came. Device memory sees each byte once.
//
// Neighbouring rows begin in different banks of shared memory, or two in each: the stride of rows that are no whole
// vectors is an odd number of 2, 4 or 8 bytes. The others are the business of cross_entropy_wide.cuh.
#pragma once

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/softmax_row.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kNarrowClasses = 512;
inline constexpr int kNarrowThreads = 256;
inline constexpr int kNarrowLaneClasses = 64;
// Logits that a thread holds at a time, so that it compares their largest with the largest so far once for all of them:
// names have 27 symbols. Of what is left, and with options, which take registers, it holds a part of that.
inline constexpr int kNarrowChunk = 27, kNarrowPart = 9;
// Seven tiles fit into the 227 KB of a multiprocessor, and all but one can wait for memory.
inline constexpr int kNarrowTileBytes = 32 << 10;

// How a tile is cut: lanes for a row, and rows. It has a multiple of 8 rows, so all tiles begin as the first does in a
// vector.
struct NarrowTile {
  int lanes = 1, rows = kNarrowThreads;

  static NarrowTile of(int64_t classes, int64_t element_size) {
    NarrowTile tile;
    while (tile.lanes * kNarrowLaneClasses < classes || tile.rows * classes * element_size > kNarrowTileBytes) {
      tile.lanes *= 2;
      tile.rows /= 2;
    }
    return tile;
  }

  int64_t shared_bytes(int64_t classes, int64_t element_size) const {
    return (rows * classes * element_size + 2 * kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  }
};

template <typename T>
bool is_flat(const ClassMatrix& matrix, const CrossEntropy<T>& p) {
  return matrix.class_stride == 1 && matrix.inner == 1 && (matrix.outer_stride == p.classes || p.rows == 1);
}

// Whether all rows begin where vectors do, and end where they do.
template <typename T>
bool has_vectors(const ClassMatrix& matrix, const CrossEntropy<T>& p) {
  return p.classes * storage_size(matrix.storage) % kVectorBytes == 0 &&
         reinterpret_cast<uintptr_t>(matrix.data) % kVectorBytes == 0;
}

template <typename T>
bool is_narrow(const CrossEntropy<T>& p) {
  return p.classes > 0 && p.classes <= kNarrowClasses && p.target != nullptr && is_flat(p.input, p) &&
         (p.input_gradient.data == nullptr || is_flat(p.input_gradient, p)) && !has_vectors(p.input, p);
}

// Copies `count` elements by all threads of the block; copy(to, from) moves 16 bytes of those that lie in vectors on
// both sides, which begin after `head` elements.
template <typename S, typename Copy>
__device__ inline void copy_flat(S* to, const S* from, int count, int head, const Copy& copy) {
  const int thread = static_cast<int>(threadIdx.x);
  if (head > count) head = count;
  const int vectors = (count - head) / kVectorWidth<S>, tail = head + vectors * kVectorWidth<S>;
  const uint4* from_vectors = reinterpret_cast<const uint4*>(from + head);
  uint4* to_vectors = reinterpret_cast<uint4*>(to + head);
#pragma unroll 1
  for (int v = thread; v < vectors; v += kNarrowThreads) copy(to_vectors + v, from_vectors + v);
#pragma unroll 1
  for (int e = thread; e < head + count - tail; e += kNarrowThreads) {
    const int i = e < head ? e : tail + e - head;
    to[i] = from[i];
  }
}

// Some of the classes of a row that a lane of it has: every `lanes`th. What the compiler knows of the number of lanes
// spares it the computation of addresses.
template <int kValues, bool kIsWhole>
struct NarrowChunk {
  static constexpr int kCount = kValues;
  int begin, lanes, classes;

  __device__ bool contains(int k) const { return kIsWhole || begin + k * lanes < classes; }
  // Of what it does not contain, the first. Loads without a condition share the computation of their addresses.
  __device__ int operator[](int k) const { return contains(k) ? begin + k * lanes : begin; }
};

// kLanes: the number of lanes, where it is known; otherwise 0.
template <int kLanes, int kChunk, typename Body>
__device__ inline void for_each_chunk(int classes, int lane, int lanes, const Body& body) {
  if constexpr (kLanes > 0) lanes = kLanes;
  int begin = lane;
#pragma unroll 1
  for (; begin + (kChunk - 1) * lanes < classes; begin += kChunk * lanes) {
    body(NarrowChunk<kChunk, true>{begin, lanes, classes});
  }
  constexpr int kRest = kChunk < kNarrowPart ? kChunk : kNarrowPart;
#pragma unroll 1
  for (; begin < classes; begin += kRest * lanes) body(NarrowChunk<kRest, false>{begin, lanes, classes});
}

// The part of a row that falls to one of its lanes.
template <typename S, bool kPlain, int kLanes, int kChunk>
__device__ inline SoftmaxPart<Compute<S>> narrow_part(const CrossEntropy<Compute<S>>& p, const S* row, int lane,
                                                      int lanes = kLanes) {
  using T = Compute<S>;
  SoftmaxPart<T> part;
  for_each_chunk<kLanes, kChunk>(static_cast<int>(p.classes), lane, lanes, [&](const auto& chunk) {
    T z[chunk.kCount], largest = kLowest<T>;
#pragma unroll
    for (int k = 0; k < chunk.kCount; ++k) {
      const T input = to_compute(row[chunk[k]]);
      z[k] = chunk.contains(k) ? logit<T, kPlain>(p, input) : -static_cast<T>(INFINITY);
      largest = larger(largest, z[k]);
    }
    part.raise_shift(largest);
#pragma unroll
    for (int k = 0; k < chunk.kCount; ++k) {
      part.sum += part.exponential(z[k]);
      if constexpr (!kPlain) {
        if (p.label_smoothing != 0 && chunk.contains(k)) {
          const T a = spread_coefficient(p, chunk[k], T(0));
          part.total += a;
          part.product += a * (z[k] - part.shift);
        }
      }
    }
  });
  return part;
}

// Replaces the logits of a row by their gradients. All lanes have read `target_input`, the target's logit.
template <typename S, bool kPlain, int kLanes>
__device__ inline void narrow_gradients(const CrossEntropy<Compute<S>>& p, const RowGradient<Compute<S>>& values,
                                        int target, Compute<S> target_input, S* row, int lane, int lanes = kLanes) {
  using T = Compute<S>;
  for_each_chunk<kLanes, kNarrowPart>(static_cast<int>(p.classes), lane, lanes, [&](const auto& chunk) {
    T gradients[chunk.kCount];
#pragma unroll
    for (int k = 0; k < chunk.kCount; ++k) {
      gradients[k] = input_gradient<T, kPlain>(p, values, to_compute(row[chunk[k]]), false, chunk[k], T(0));
    }
#pragma unroll
    for (int k = 0; k < chunk.kCount; ++k) {
      if (chunk.contains(k)) row[chunk[k]] = to_storage<S>(gradients[k]);
    }
  });
  if (target >= 0 && target % lanes == lane) {
    row[target] = to_storage<S>(input_gradient<T, kPlain>(p, values, target_input, true, target, T(0)));
  }
}

template <typename S, bool kPlain>
__global__ void __launch_bounds__(kNarrowThreads, sizeof(S) == sizeof(double) ? 2 : 4)
    narrow_rows(const CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>> run, const NarrowTile tile) {
  using T = Compute<S>;
  __shared__ T scratch[2 * kWarp];
  const int classes = static_cast<int>(p.classes);
  const int64_t first = blockIdx.x * static_cast<int64_t>(tile.rows), left = p.rows - first;
  const int rows = left < tile.rows ? static_cast<int>(left) : tile.rows;
  const S* source = static_cast<const S*>(p.input.data) + first * classes;
  // It begins where in a vector the source does.
  S* logits = reinterpret_cast<S*>(dynamic_shared()) + reinterpret_cast<uintptr_t>(source) % kVectorBytes / sizeof(S);
  const int head = misaligned_head(source);
  copy_flat(logits, source, rows * classes, head, [](uint4* to, const uint4* from) { copy_async(to, from); });

  // All lanes of a row know what is known of it; they are of one warp.
  const int lane = static_cast<int>(threadIdx.x) % tile.lanes, r = static_cast<int>(threadIdx.x) / tile.lanes;
  const bool has_row = r < rows, has_gradient = p.input_gradient.data != nullptr;
  const int64_t row = first + (has_row ? r : 0), y = p.target[row];
  const T scale = has_gradient ? gradient_scale<S>(p, run) : T(0);
  T shift = 0, log_sum = 0;
  if (p.lse_is_known) {
    shift = p.shift[row];
    log_sum = p.log_sum[row];
  }
  wait_for_copies();
  __syncthreads();

  const RowTarget<T> target = row_target(p, has_row ? y : p.ignore_index);
  S* own = logits + (has_row ? r * classes : 0);
  const T target_input = target.index >= 0 ? to_compute(own[target.index]) : T(0);
  SoftmaxPart<T> part;
  if (!p.lse_is_known || (!kPlain && total_is_unknown(p))) {
    if (has_row) {
      constexpr int kChunk = kPlain ? kNarrowChunk : sizeof(T) == sizeof(float) ? kNarrowPart : kNarrowPart / 2;
      part = tile.lanes == 1 ? narrow_part<S, kPlain, 1, kChunk>(p, own, lane)
                             : narrow_part<S, kPlain, 0, kPlain ? kNarrowPart : kChunk>(p, own, lane, tile.lanes);
    }
    part = merge_lanes<T, kPlain>(part, tile.lanes);
  }
  T sum, loss = 0;
  if (p.lse_is_known) {
    sum = exp(log_sum);
  } else {
    shift = part.shift;
    sum = part.exact_sum();
    log_sum = log(sum);
    if (lane == 0 && has_row) {
      loss = token_weight(p, row, target) * row_loss<T, kPlain>(p, target, part, log_sum, target_input);
      p.shift[row] = shift;
      p.log_sum[row] = log_sum;
      if (run.row_loss != nullptr) run.row_loss[row] = loss;
    }
    write_parts(run, loss, lane == 0 && has_row ? mean_weight(p, row, target) : T(0), scratch);
  }
  if (!has_gradient) return;

  __syncwarp();  // all lanes have read the target's logit
  if (target.ignored) {
    for (int c = lane; has_row && c < classes; c += tile.lanes) own[c] = to_storage<S>(T(0));
  } else {
    const RowGradient<T> values =
        row_gradient<T, kPlain>(p, row, target, shift, sum, log_sum, part.total, scale * token_weight(p, row, target));
    if (tile.lanes == 1) {
      narrow_gradients<S, kPlain, 1>(p, values, target.index, target_input, own, lane);
    } else {
      narrow_gradients<S, kPlain, 0>(p, values, target.index, target_input, own, lane, tile.lanes);
    }
  }
  __syncthreads();
  S* gradients = static_cast<S*>(p.input_gradient.data) + first * classes;
  const bool alike = misaligned_head(gradients) == head;
  copy_flat(gradients, static_cast<const S*>(logits), rows * classes, alike ? head : rows * classes,
            [](uint4* to, const uint4* from) { *to = *from; });
}

}  // namespace
}  // namespace charlm::cuda
