// Rows of any length and layout: a group of threads per row, from one thread (rows that lie side by side, as pixels do)
// over a warp (1K classes) and a block (64K) to several blocks (fewer rows than multiprocessors).
//
// A row is read once, in vectors of 16 bytes where its classes are adjacent, under a running maximum. The gradient
// reads it again: from device memory in a backward pass, from the cache where forward computes the gradient as well.
#pragma once

#include "kernels/cuda/softmax_row.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kMaxThreads = 512;
inline constexpr int kWideThreads = 256;  // of a block, where a row takes fewer
inline constexpr int kMaxSplits = kWarp;  // one lane merges each
inline constexpr int kMergeThreads = 256;

// How a problem is cut: threads for a row (a power of two), rows for a block, blocks for a row.
struct WideShape {
  int threads, rows, splits;
  int64_t row_blocks;

  template <typename T>
  static WideShape of(const CrossEntropy<T>& p) {
    WideShape shape{1, 1, 1, 0};
    // Splitting pays where whole rows would leave multiprocessors idle, and each piece still has 16K classes.
    if (p.rows < 256 && p.rows > 0) {
      shape.splits = static_cast<int>(clamp(512 / p.rows, 1, clamp(p.classes / 16384, 1, kMaxSplits)));
    }
    const int64_t classes = p.classes / shape.splits;
    const bool adjacent = p.input.class_stride == 1 || p.rows == 1;
    // 64 classes a thread amortise merging; adjacent rows of strided classes are read together, a thread each.
    int64_t most = adjacent                           ? clamp(classes / 64, kWarp, kMaxThreads)
                   : classes <= 64 || p.rows >= 16384 ? 1
                                                      : kWideThreads;
    if (classes < 8 * most) most = classes / 8;
    while (2 * shape.threads <= most) shape.threads *= 2;
    shape.rows = shape.threads < kWideThreads ? kWideThreads / shape.threads : 1;
    shape.row_blocks = (p.rows + shape.rows - 1) / shape.rows;
    return shape;
  }

  static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
  }
};

// Up to a vector of a row's values in registers: values[j] is class first + j * step. Where a piece reaches out of the
// classes [begin, end) of its thread group it has -infinity, whose exponential is 0.
template <typename S>
struct Piece {
  S values[kVectorWidth<S>];
  int first, step;
};

// The classes [begin, end) of a row as pieces, dealt to the threads of its group in turn.
template <typename S>
struct RowPieces {
  const S* data;
  int64_t stride;
  int begin, end;
  int offset = 0;  // of `begin` in its vector, where classes are adjacent

  __device__ RowPieces(const ClassMatrix& matrix, int64_t row, int begin, int end)
      : data(static_cast<const S*>(matrix.data) + matrix.row_offset(row)),
        stride(matrix.class_stride),
        begin(begin),
        end(end) {
    if (stride == 1) {
      offset = static_cast<int>(reinterpret_cast<uintptr_t>(data + begin) % kVectorBytes / sizeof(S));
    }
  }

  __device__ bool contains(int c) const { return c >= begin && c < end; }
  // All of a vector's classes, which are adjacent.
  __device__ bool is_whole(const Piece<S>& piece) const {
    return stride == 1 && piece.first >= begin && piece.first + kVectorWidth<S> <= end;
  }

  __device__ Piece<S> load(int i, int threads) const {
    Piece<S> piece;
    if (stride == 1) {
      piece.step = 1;
      piece.first = begin - offset + i * kVectorWidth<S>;
      if (is_whole(piece)) {
        const Vector<S> vector = load_vector(data + piece.first);
        memcpy(piece.values, vector.values, sizeof(vector));
        return piece;
      }
    } else {
      piece.step = threads;
      piece.first = begin + i / threads * (threads * kVectorWidth<S>)+i % threads;
    }
#pragma unroll
    for (int j = 0; j < kVectorWidth<S>; ++j) {
      const int c = piece.first + j * piece.step;
      piece.values[j] = contains(c) ? data[c * stride] : to_storage<S>(-static_cast<Compute<S>>(INFINITY));
    }
    return piece;
  }

  // Calls body(piece) for the pieces of a thread, with two loads in flight.
  template <typename Body>
  __device__ void for_each(int thread, int threads, const Body& body) const {
    // Strided pieces take the classes of a whole round of threads, so there are as many as full rounds have.
    const int round = stride == 1 ? kVectorWidth<S> : threads * kVectorWidth<S>;
    const int rounds = (offset + end - begin + round - 1) / round;
    const int pieces = stride == 1 ? rounds : rounds * threads;
    for (int i = thread; i < pieces; i += 2 * threads) {
      const bool has_next = i + threads < pieces;
      const Piece<S> piece = load(i, threads);
      Piece<S> next;
      if (has_next) next = load(i + threads, threads);
      body(piece);
      if (has_next) body(next);
    }
  }
};

// The value of a class matrix at a row and a class.
template <typename S>
__device__ inline S& value_at(const ClassMatrix& matrix, int64_t row_offset, int64_t c) {
  return static_cast<S*>(matrix.data)[row_offset + c * matrix.class_stride];
}

template <typename S, bool kPlain>
__device__ inline void add_piece(const CrossEntropy<Compute<S>>& p, const RowPieces<S>& pieces, const Piece<S>& piece,
                                 int64_t probability_offset, SoftmaxPart<Compute<S>>* part) {
  using T = Compute<S>;
  T z[kVectorWidth<S>], largest = kLowest<T>;
#pragma unroll
  for (int j = 0; j < kVectorWidth<S>; ++j) {
    z[j] = to_compute(piece.values[j]);
    if constexpr (!kPlain) {
      // A cap would lift the -infinity of what is not there.
      if (p.softcap != 0 && pieces.contains(piece.first + j * piece.step)) z[j] = logit<T, kPlain>(p, z[j]);
    }
    largest = larger(largest, z[j]);
  }
  part->raise_shift(largest);
#pragma unroll
  for (int j = 0; j < kVectorWidth<S>; ++j) {
    part->sum += fast_exp(z[j] - part->shift);
    if constexpr (!kPlain) {
      const int c = piece.first + j * piece.step;
      if ((p.target != nullptr && p.label_smoothing == 0) || !pieces.contains(c)) continue;
      const T probability =
          p.target == nullptr ? to_compute(value_at<S>(p.probabilities, probability_offset, c)) : T(0);
      const T a = spread_coefficient(p, c, probability);
      part->total += a;
      part->product += a * (z[j] - part->shift);
    }
  }
}

// Merges the parts of all threads of each row; every thread gets its row's. Rows of more than a warp go by `shared`.
template <typename T, bool kPlain>
__device__ inline SoftmaxPart<T> merge_group(SoftmaxPart<T> part, T (*shared)[kWarp]) {
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x) % kWarp;
  part = merge_lanes<T, kPlain>(part, threads < kWarp ? threads : kWarp);
  if (threads <= kWarp) return part;
  const int warp = thread_in_block() / kWarp, warps = threads / kWarp;
  const int first_warp = static_cast<int>(threadIdx.y) * warps;
  if (lane == 0) {
    shared[0][warp] = part.shift;
    shared[1][warp] = part.sum;
    shared[2][warp] = part.total;
    shared[3][warp] = part.product;
  }
  __syncthreads();
  part = {};
  if (lane < warps) {
    const int from = first_warp + lane;
    part = {shared[0][from], shared[1][from], shared[2][from], shared[3][from]};
  }
  return merge_lanes<T, kPlain>(part, kWarp);
}

template <typename S, bool kPlain>
__device__ inline void write_gradients(const CrossEntropy<Compute<S>>& p, const RowPieces<S>& pieces,
                                       const Piece<S>& piece, int64_t row, int target,
                                       const RowGradient<Compute<S>>& values) {
  using T = Compute<S>;
  const int64_t to = p.input_gradient.row_offset(row);
  const int64_t from = kPlain || p.target != nullptr ? 0 : p.probabilities.row_offset(row);
  Vector<S> out;
#pragma unroll
  for (int j = 0; j < kVectorWidth<S>; ++j) {
    const int c = piece.first + j * piece.step;
    const T input = to_compute(piece.values[j]);
    T probability = 0;
    if constexpr (!kPlain) {
      if (!pieces.contains(c)) continue;
      if (p.target == nullptr) probability = to_compute(value_at<S>(p.probabilities, from, c));
      if (p.probabilities_gradient.data != nullptr) {
        const T log_softmax = logit<T, kPlain>(p, input) - values.shift - values.log_sum;
        const T weight = p.weight != nullptr ? p.weight[c] : T(1);
        value_at<S>(p.probabilities_gradient, p.probabilities_gradient.row_offset(row), c) =
            to_storage<S>(-log_softmax * weight * (1 - p.label_smoothing) * values.scale);
      }
    }
    out.values[j] = to_storage<S>(input_gradient<T, kPlain>(p, values, input, c == target, c, probability));
  }
  if (p.input_gradient.data == nullptr) return;
  S* first = &value_at<S>(p.input_gradient, to, piece.first);
  if (pieces.is_whole(piece) && p.input_gradient.class_stride == 1 && misaligned_head(first) == 0) {
    store_vector(first, out);
    return;
  }
#pragma unroll
  for (int j = 0; j < kVectorWidth<S>; ++j) {
    const int c = piece.first + j * piece.step;
    if (pieces.contains(c)) value_at<S>(p.input_gradient, to, c) = out.values[j];
  }
}

// block.x walks over the classes of a row, block.y over the block's rows. With several splits a forward pass leaves the
// parts of its rows in run.split_rows, for merge_splits to finish.
template <typename S, bool kPlain>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? 2 : 1)  // 64 registers keep half of all warps resident
    wide_rows(const CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>> run, const int splits) {
  using T = Compute<S>;
  __shared__ T shared[4][kWarp];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int split = static_cast<int>(blockIdx.x % splits);
  const int64_t row = blockIdx.x / splits * static_cast<int64_t>(blockDim.y) + threadIdx.y;
  const bool has_row = row < p.rows;  // threads without one stay for the barriers
  const bool has_gradient = p.input_gradient.data != nullptr || p.probabilities_gradient.data != nullptr;
  const T scale = has_gradient ? gradient_scale<S>(p, run) : T(0);
  const RowTarget<T> target = has_row ? row_target(p, row) : RowTarget<T>{-1, 0, 0};
  T target_input = 0;  // read before a gradient in the place of the logits is written
  if (thread == 0 && !p.lse_is_known && target.index >= 0) {
    target_input = to_compute(value_at<S>(p.input, p.input.row_offset(row), target.index));
  }
  const int classes = static_cast<int>(p.classes);
  const int width = ((classes - 1) / splits + kVectorWidth<S>) / kVectorWidth<S> * kVectorWidth<S>;
  const int begin = split * width < classes ? split * width : classes;
  const int end = width < classes - begin ? begin + width : classes;
  const RowPieces<S> pieces(p.input, has_row ? row : 0, begin, has_row ? end : begin);

  SoftmaxPart<T> part;
  if (!p.lse_is_known || (!kPlain && total_is_unknown(p))) {
    const int64_t from = kPlain || p.target != nullptr || !has_row ? 0 : p.probabilities.row_offset(row);
    pieces.for_each(thread, threads,
                    [&](const Piece<S>& piece) { add_piece<S, kPlain>(p, pieces, piece, from, &part); });
    part = merge_group<T, kPlain>(part, shared);
  }
  if (splits > 1 && !p.lse_is_known) {
    if (thread != 0 || !has_row) return;
    T* to = run.split_rows + 4 * (row * splits + split);
    to[0] = part.shift;
    to[1] = part.sum;
    to[2] = part.total;
    to[3] = part.product;
    return;
  }

  T log_sum = 0;
  if (p.lse_is_known) {
    if (has_row) {
      part.shift = p.shift[row];
      log_sum = p.log_sum[row];
    }
    part.sum = exp(log_sum);
  } else {
    log_sum = log(part.sum);
    T loss = 0;
    if (thread == 0 && has_row) {
      loss = row_loss<T, kPlain>(p, target, part, target_input);
      p.shift[row] = part.shift;
      p.log_sum[row] = log_sum;
      if (run.row_loss != nullptr) run.row_loss[row] = loss;
    }
    __syncthreads();  // shared is free again
    write_parts(run, loss, thread == 0 ? target.mean_weight : T(0), shared[0]);
  }
  if (!has_gradient || !has_row) return;
  const RowGradient<T> values =
      row_gradient<T, kPlain>(p, row, target, part.shift, part.sum, log_sum, part.total, scale);
  const int y = static_cast<int>(target.index);
  pieces.for_each(thread, threads,
                  [&](const Piece<S>& piece) { write_gradients<S, kPlain>(p, pieces, piece, row, y, values); });
}

// Finishes the rows whose parts several blocks have gathered: a warp per row, a lane per part.
template <typename S, bool kPlain>
__global__ void __launch_bounds__(kMergeThreads)
    merge_splits(const CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>> run, const int splits) {
  using T = Compute<S>;
  __shared__ T scratch[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = (blockIdx.x * static_cast<int64_t>(kMergeThreads) + threadIdx.x) / kWarp;
  SoftmaxPart<T> part;
  if (row < p.rows && lane < splits) {
    const T* from = run.split_rows + 4 * (row * splits + lane);
    part = {from[0], from[1], from[2], from[3]};
  }
  part = merge_lanes<T, kPlain>(part, kWarp);
  T loss = 0, mean_weight = 0;
  if (lane == 0 && row < p.rows) {
    const RowTarget<T> target = row_target(p, row);
    const T target_input =
        target.index >= 0 ? to_compute(value_at<S>(p.input, p.input.row_offset(row), target.index)) : T(0);
    loss = row_loss<T, kPlain>(p, target, part, target_input);
    mean_weight = target.mean_weight;
    p.shift[row] = part.shift;
    p.log_sum[row] = log(part.sum);
    if (run.row_loss != nullptr) run.row_loss[row] = loss;
  }
  write_parts(run, loss, mean_weight, scratch);
}

}  // namespace
}  // namespace charlm::cuda
