// Rows of any length and layout: a group of threads per row, from one thread (few classes, or rows that lie side by
// side, as pixels do) over a part of a warp (4K classes in bfloat16) and a block (128K) to several blocks (fewer rows
// than multiprocessors).
//
// A row is read once, in vectors of 16 bytes where its classes are adjacent, under a running maximum. The gradient
// reads it again: from device memory in a backward pass, from the cache where forward computes the gradient as well.
#pragma once

#include "kernels/cuda/row_group.cuh"
#include "kernels/cuda/row_pieces.cuh"
#include "kernels/cuda/softmax_row.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kMaxSplits = kWarp;  // one lane merges each
inline constexpr int kMergeThreads = 256;

// How a problem is cut: threads for a row (a power of two), rows for a block, blocks for a row and the classes of each.
struct WideShape {
  int threads, rows, splits, split_classes;
  bool is_adjacent;
  int64_t row_blocks;

  template <typename T>
  static WideShape of(const CrossEntropy<T>& p) {
    WideShape shape{1, 1, 1, 0, p.input.class_stride == 1 || p.classes == 1, 0};
    const int width = kVectorBytes / static_cast<int>(storage_size(p.input.storage));
    // Splitting pays where whole rows would leave multiprocessors idle, and each piece still has 16K classes.
    if (p.rows < 256 && p.rows > 0) {
      shape.splits = static_cast<int>(clamp(512 / p.rows, 1, clamp(p.classes / 16384, 1, kMaxSplits)));
    }
    const int64_t vectors = (p.classes + shape.splits * width - 1) / (shape.splits * width);
    shape.split_classes = static_cast<int>(vectors * width);
    shape.threads = shape.is_adjacent ? threads_for_vectors(p.rows * shape.splits, vectors)
                                      : threads_for_scalars(p.rows, p.classes / shape.splits);
    shape.rows = shape.threads < kWideThreads ? kWideThreads / shape.threads : 1;
    shape.row_blocks = (p.rows + shape.rows - 1) / shape.rows;
    return shape;
  }

 private:
  static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
  }
};

// The value of a class matrix at a row and a class.
template <typename S>
__device__ inline S& value_at(const ClassMatrix& matrix, int64_t row_offset, int64_t c) {
  return static_cast<S*>(matrix.data)[row_offset + c * matrix.class_stride];
}

template <typename S, bool kPlain, typename Piece>
__device__ inline void add_piece(const CrossEntropy<Compute<S>>& p, const Piece& piece, int64_t probability_offset,
                                 SoftmaxPart<Compute<S>>* part) {
  using T = Compute<S>;
  if constexpr (kPlain) part->raise_shift(piece.largest());
  piece.for_each_part([&](T* z, const auto& classes) {
    if constexpr (!kPlain) {
      T largest = kLowest<T>;
#pragma unroll
      for (int i = 0; i < classes.kCount; ++i) {
        // A cap would lift the -infinity of what is not there.
        if (p.softcap != 0 && classes.contains(i)) z[i] = logit<T, kPlain>(p, z[i]);
        largest = larger(largest, z[i]);
      }
      part->raise_shift(largest);
    }
#pragma unroll
    for (int i = 0; i < classes.kCount; ++i) {
      part->sum += part->exponential(z[i]);
      if constexpr (!kPlain) {
        if ((p.target != nullptr && p.label_smoothing == 0) || !classes.contains(i)) continue;
        const T probability =
            p.target == nullptr ? to_compute(value_at<S>(p.probabilities, probability_offset, classes[i])) : T(0);
        const T a = spread_coefficient(p, classes[i], probability);
        part->total += a;
        part->product += a * (z[i] - part->shift);
      }
    }
  });
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
  const int from = first_warp + lane % warps;
  part = SoftmaxPart<T>(shared[0][from], shared[1][from], shared[2][from], shared[3][from]);
  return merge_lanes<T, kPlain>(part, warps);
}

// Where the gradients of a row go.
template <typename S>
struct GradientRow {
  bool is_wanted;
  S* data;
  int64_t class_stride;                           // of data
  int64_t probabilities, probabilities_gradient;  // the row's offsets in these matrices
  int target;                                     // class, or -1

  template <typename Classes>
  __device__ void store(const Compute<S>* values, const Classes& classes) const {
    if (is_wanted) store_classes<S>(data, class_stride, values, classes);
  }
};

template <typename S, bool kPlain, typename Piece>
__device__ inline void write_gradients(const CrossEntropy<Compute<S>>& p, const Piece& piece, const GradientRow<S>& to,
                                       const RowGradient<Compute<S>>& row) {
  using T = Compute<S>;
  piece.for_each_part([&](T* values, const auto& classes) {
#pragma unroll
    for (int i = 0; i < classes.kCount; ++i) {
      if constexpr (kPlain) {
        values[i] = input_gradient<T, kPlain>(p, row, values[i], false, 0, T(0));
      } else {
        if (!classes.contains(i)) continue;
        const int c = classes[i];
        const T probability =
            p.target == nullptr ? to_compute(value_at<S>(p.probabilities, to.probabilities, c)) : T(0);
        if (p.probabilities_gradient.data != nullptr) {
          const T log_softmax = logit<T, kPlain>(p, values[i]) - row.shift - row.log_sum;
          const T weight = p.weight != nullptr ? p.weight[c] : T(1);
          value_at<S>(p.probabilities_gradient, to.probabilities_gradient, c) =
              to_storage<S>(-log_softmax * weight * (1 - p.label_smoothing) * row.scale);
        }
        values[i] = input_gradient<T, kPlain>(p, row, values[i], c == to.target, c, probability);
      }
    }
    if (kPlain && classes.has(to.target)) {
#pragma unroll
      for (int i = 0; i < classes.kCount; ++i) {
        if (classes[i] == to.target) values[i] -= row.index_scale;
      }
    }
    to.store(values, classes);
  });
}

// block.x walks over the classes of a row, block.y over the block's rows. With several splits a forward pass leaves the
// parts of its rows in run.split_rows, for merge_splits to finish.
template <typename S, bool kPlain, bool kAdjacent>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? 2 : 1)  // 64 registers keep half of all warps resident
    wide_rows(const CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>> run, const WideShape shape) {
  using T = Compute<S>;
  constexpr int kPieceVectors = kPlain ? kVectorsAhead : 1;  // all at once, unless that takes too many registers
  __shared__ T shared[4][kWarp];
  const int thread = static_cast<int>(threadIdx.x), classes = static_cast<int>(p.classes);
  int64_t row = blockIdx.x;
  int split = 0, begin = 0, end = classes;
  if (shape.splits > 1) {
    row = blockIdx.x / shape.splits;
    split = static_cast<int>(blockIdx.x) - static_cast<int>(row) * shape.splits;
    begin = split * shape.split_classes < classes ? split * shape.split_classes : classes;
    end = shape.split_classes < classes - begin ? begin + shape.split_classes : classes;
  }
  row = row * blockDim.y + threadIdx.y;
  const bool has_row = row < p.rows;  // threads without one stay for the barriers
  const bool has_gradient = p.input_gradient.data != nullptr || p.probabilities_gradient.data != nullptr;
  const T scale = has_gradient ? gradient_scale<S>(p, run) : T(0);
  const int64_t y = has_row && p.target != nullptr ? p.target[row] : p.ignore_index;
  const S* input = static_cast<const S*>(p.input.data) + (has_row ? p.input.row_offset(row) : 0);
  const RowPieces<S> pieces{input,  p.input.class_stride,        begin, has_row ? end : begin,
                            thread, static_cast<int>(blockDim.x)};

  SoftmaxPart<T> part;
  const bool walks = !p.lse_is_known || (!kPlain && total_is_unknown(p));
  if (walks) {
    const int64_t from = kPlain || p.target != nullptr || !has_row ? 0 : p.probabilities.row_offset(row);
    const auto add = [&](const auto& piece) { add_piece<S, kPlain>(p, piece, from, &part); };
    if constexpr (kAdjacent) {
      pieces.template for_each_vector<kPieceVectors>(add);
    } else {
      pieces.for_each_scalar(add);
    }
  }
  // After the walk, which need not wait for it, and before a gradient in the place of the logits is written.
  const RowTarget<T> target = row_target(p, y);
  T target_input = 0;
  if (thread == 0 && !p.lse_is_known && target.index >= 0)
    target_input = to_compute(input[target.index * p.input.class_stride]);
  if (walks) part = merge_group<T, kPlain>(part, shared);
  if (shape.splits > 1 && !p.lse_is_known) {
    if (thread != 0 || !has_row) return;
    T* to = run.split_rows + 4 * (row * shape.splits + split);
    to[0] = part.shift;
    to[1] = part.sum;
    to[2] = part.total;
    to[3] = part.product;
    return;
  }

  T log_sum = 0, sum = 0;
  if (p.lse_is_known) {
    if (has_row) {
      part.shift = p.shift[row];
      log_sum = p.log_sum[row];
    }
    sum = exp(log_sum);
  } else {
    sum = part.exact_sum();
    log_sum = log(sum);
    T loss = 0;
    if (thread == 0 && has_row) {
      loss = token_weight(p, row, target) * row_loss<T, kPlain>(p, target, part, log_sum, target_input);
      p.shift[row] = part.shift;
      p.log_sum[row] = log_sum;
      if (run.row_loss != nullptr) run.row_loss[row] = loss;
    }
    __syncthreads();  // shared is free again
    write_parts(run, loss, thread == 0 && has_row ? mean_weight(p, row, target) : T(0), shared[0]);
  }
  if (!has_gradient || !has_row) return;
  const RowGradient<T> values = row_gradient<T, kPlain>(p, row, target, part.shift, sum, log_sum, part.total,
                                                        scale * token_weight(p, row, target));
  GradientRow<S> to{p.input_gradient.data != nullptr,
                    &value_at<S>(p.input_gradient, p.input_gradient.row_offset(row), 0),
                    p.input_gradient.class_stride,
                    0,
                    0,
                    target.index};
  if constexpr (!kPlain) {
    if (p.target == nullptr) to.probabilities = p.probabilities.row_offset(row);
    if (p.probabilities_gradient.data != nullptr) {
      to.probabilities_gradient = p.probabilities_gradient.row_offset(row);
    }
  }
  const uintptr_t apart = reinterpret_cast<uintptr_t>(to.data) - reinterpret_cast<uintptr_t>(input);
  const bool in_vectors = kAdjacent && (!to.is_wanted || (to.class_stride == 1 && apart % kVectorBytes == 0));
  const auto walk = [&](const auto& body) {
    if (kAdjacent && in_vectors) {
      pieces.template for_each_vector<kPieceVectors>(body);
    } else {
      pieces.for_each_scalar(body);
    }
  };
  if (values.ignored) {
    walk([&](const auto& piece) {
      piece.for_each_part([&](T* zeros, const auto& classes) {
#pragma unroll
        for (int i = 0; i < classes.kCount; ++i) zeros[i] = 0;
        to.store(zeros, classes);
      });
    });
  } else {
    walk([&](const auto& piece) { write_gradients<S, kPlain>(p, piece, to, values); });
  }
}

// Finishes the rows whose parts several blocks have gathered: a warp per row, a lane per part.
template <typename S, bool kPlain>
__global__ void __launch_bounds__(kMergeThreads)
    merge_splits(const CrossEntropy<Compute<S>> p, const CrossEntropyRun<Compute<S>> run, const int splits) {
  using T = Compute<S>;
  __shared__ T scratch[2 * kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = (blockIdx.x * static_cast<int64_t>(kMergeThreads) + threadIdx.x) / kWarp;
  SoftmaxPart<T> part;
  if (row < p.rows && lane < splits) {
    const T* from = run.split_rows + 4 * (row * splits + lane);
    part = SoftmaxPart<T>(from[0], from[1], from[2], from[3]);
  }
  part = merge_lanes<T, kPlain>(part, kWarp);
  T loss = 0, weight = 0;
  if (lane == 0 && row < p.rows) {
    const RowTarget<T> target = row_target(p, p.target != nullptr ? p.target[row] : 0);
    const T target_input =
        target.index >= 0 ? to_compute(value_at<S>(p.input, p.input.row_offset(row), target.index)) : T(0);
    const T log_sum = log(part.exact_sum());
    loss = token_weight(p, row, target) * row_loss<T, kPlain>(p, target, part, log_sum, target_input);
    weight = mean_weight(p, row, target);
    p.shift[row] = part.shift;
    p.log_sum[row] = log_sum;
    if (run.row_loss != nullptr) run.row_loss[row] = loss;
  }
  write_parts(run, loss, weight, scratch);
}

}  // namespace
}  // namespace charlm::cuda
