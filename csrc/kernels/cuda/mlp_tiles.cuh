// A small model in one kernel: from ids to losses and gradients, a tile of rows at a time, in shared memory.
//
//   h = tanh(bias1 + rows of P)      a thread owns a hidden unit, for all rows of the tile
//   z = h W2^T + bias2               a thread owns a class, for kLogitRows rows at a time
//   dz from z                        kRowLanes lanes share a row
//   dW2 += dz^T h                    a thread owns a hidden unit again: its column of W2 and of dW2 is in registers,
//   dpre = (dz W2) (1 - h^2)         and so every dz that it reads serves both products,
//   rows of dP += dpre               and no two threads ever add to one place of dP, which stays in shared memory
//
// Nothing of size N x H or N x V is written: a block reads keys and targets, and at its end writes its dP, dW2 and
// dbias2, which the caller adds up. So a batch of a million rows is bound by arithmetic, 6 V H operations a row.
#pragma once

#include "kernels/cuda/cross_entropy_narrow.cuh"

namespace charlm::cuda {
namespace {

inline constexpr int kHiddenRows = 8;  // rows whose loads from P are under way at the same time
inline constexpr int kLogitRows = 8;
inline constexpr int kRowLanes = 4;
inline constexpr int kScatterRows = 2;  // rows of dpre that a thread computes before it adds them to dP
inline constexpr int kMaxTileRows = 64, kMinTileRows = 16;

template <typename T>
struct MlpTiles {
  const int32_t* keys;  // (N, T) rows of P; -1 throughout a row that has a bad id
  const T* table;       // P
  const T* bias1;       // null: zeros, like bias2
  const T* weight2;     // (V, H)
  const T* bias2;
  T* gradients;          // (blocks, gradient_values()): dP, dW2 and dbias2 of each block; null: not wanted
  CrossEntropy<T> loss;  // input and input_gradient are not read
  CrossEntropyRun<T> run;
  int64_t tiles_per_block;
  int context_length, hidden_dim, table_rows, tile_rows;

  __host__ __device__ int classes() const { return static_cast<int>(loss.classes); }
  __host__ __device__ int64_t table_values() const { return static_cast<int64_t>(table_rows) * hidden_dim; }
  __host__ __device__ int64_t weight2_values() const { return static_cast<int64_t>(classes()) * hidden_dim; }
  __host__ __device__ int64_t gradient_values() const { return table_values() + weight2_values() + classes(); }
};

// The shared memory of a block. Row strides are such that vectors of neighbouring rows lie in different banks.
template <typename T, int kClasses>
struct MlpMemory {
  static constexpr int kVector = kVectorWidth<T>;
  static constexpr int kLogitStride = kClasses + kVector;
  static_assert(kClasses % kVector == 0 && (kLogitStride / kVector) % 2 == 1);

  int hidden_stride;
  T* hidden;          // (rows, H)
  T* weight2;         // (V, H)
  T* logits;          // (rows, V), then dz
  T* scratch;         // (kWarp,)
  T* table_gradient;  // dP, contiguous
  int* keys;          // (rows, T)

  __host__ __device__ static int stride_of(int hidden_dim) {
    return ((hidden_dim + kVector - 1) / kVector | 1) * kVector;  // an odd number of vectors
  }
  static int64_t bytes(const MlpTiles<T>& p) {
    const int64_t stride = stride_of(p.hidden_dim);
    const int64_t values = (p.tile_rows + p.classes()) * stride + p.tile_rows * kLogitStride + kWarp +
                           (p.gradients != nullptr ? p.table_values() : 0);
    return values * static_cast<int64_t>(sizeof(T)) +
           p.tile_rows * p.context_length * static_cast<int64_t>(sizeof(int));
  }
  __device__ explicit MlpMemory(const MlpTiles<T>& p) : hidden_stride(stride_of(p.hidden_dim)) {
    hidden = reinterpret_cast<T*>(dynamic_shared());
    weight2 = hidden + p.tile_rows * hidden_stride;
    logits = weight2 + p.classes() * hidden_stride;
    scratch = logits + p.tile_rows * kLogitStride;
    table_gradient = scratch + kWarp;
    keys = reinterpret_cast<int*>(table_gradient + (p.gradients != nullptr ? p.table_values() : 0));
  }
};

// h of one hidden unit. Columns beyond H fill up the last vector of a row, and are 0.
template <typename T, int kClasses>
__device__ inline void hidden_column(const MlpTiles<T>& p, const MlpMemory<T, kClasses>& memory, int column, int rows) {
  const bool exists = column < p.hidden_dim;
  const T bias = exists && p.bias1 != nullptr ? p.bias1[column] : T(0);
#pragma unroll 1
  for (int first = 0; first < p.tile_rows; first += kHiddenRows) {
    T values[kHiddenRows];
#pragma unroll
    for (int r = 0; r < kHiddenRows; ++r) values[r] = bias;
    for (int t = 0; exists && t < p.context_length; ++t) {
#pragma unroll
      for (int r = 0; r < kHiddenRows; ++r) {
        const int key = memory.keys[(first + r) * p.context_length + t];
        values[r] += key >= 0 ? p.table[key * p.hidden_dim + column] : not_a_number<T>();
      }
    }
#pragma unroll
    for (int r = 0; r < kHiddenRows; ++r) {
      memory.hidden[(first + r) * memory.hidden_stride + column] = exists && first + r < rows ? tanh(values[r]) : T(0);
    }
  }
}

template <typename T, int kClasses>
__device__ inline void logits_of_class(const MlpTiles<T>& p, const MlpMemory<T, kClasses>& memory, int c, int first) {
  constexpr int kVector = MlpMemory<T, kClasses>::kVector;
  const T* weight = memory.weight2 + c * memory.hidden_stride;
  const T* hidden = memory.hidden + first * memory.hidden_stride;
  T sums[kLogitRows] = {};
#pragma unroll 1  // more would not fit into registers, beside dW2
  for (int h = 0; h < p.hidden_dim; h += kVector) {
    const Vector<T> w = load_vector(weight + h);
#pragma unroll
    for (int r = 0; r < kLogitRows; ++r) {
      const Vector<T> x = load_vector(hidden + r * memory.hidden_stride + h);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[r] += x.values[i] * w.values[i];
    }
  }
  const T bias = p.bias2 != nullptr ? p.bias2[c] : T(0);
#pragma unroll
  for (int r = 0; r < kLogitRows; ++r) {
    memory.logits[(first + r) * MlpMemory<T, kClasses>::kLogitStride + c] = sums[r] + bias;
  }
}

// The loss of one row, and its logits replaced by dz. All lanes of a warp take part, also for rows beyond the last.
template <typename T, bool kPlain, int kClasses>
__device__ inline void finish_row(const MlpTiles<T>& p, T* logits, int64_t row, bool exists, T scale, T* loss,
                                  T* mean_weight) {
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes;
  const SoftmaxPart<T> part =
      merge_lanes<T, kPlain>(narrow_part<T, kPlain>(p.loss, logits, lane, kRowLanes), kRowLanes);
  const RowTarget<T> target = exists ? row_target(p.loss, row) : RowTarget<T>{};
  if (exists && lane == 0) {
    const T target_input = target.index >= 0 ? logits[target.index] : T(0);
    const T value = row_loss<T, kPlain>(p.loss, target, part, target_input);
    if (p.run.row_loss != nullptr) p.run.row_loss[row] = value;
    *loss += value;
    *mean_weight += target.mean_weight;
  }
  if (p.gradients == nullptr) return;
  RowGradient<T> gradient{};
  if (exists) {
    gradient = row_gradient<T, kPlain>(p.loss, row, target, part.shift, part.sum, log(part.sum), part.total, scale);
  }
  __syncwarp();  // lane 0 has read the target's logit
  for (int c = lane; c < p.classes(); c += kRowLanes) {
    logits[c] = exists ? input_gradient<T, kPlain>(p.loss, gradient, logits[c], c == target.index, c, T(0)) : T(0);
  }
}

// What the rows of a tile add to a column of dW2, and to that of dP.
template <typename T, int kClasses>
__device__ inline void add_column_gradients(const MlpTiles<T>& p, const MlpMemory<T, kClasses>& memory, int column,
                                            int rows, T (&weight_gradient)[kClasses]) {
  constexpr int kVector = MlpMemory<T, kClasses>::kVector;
  T weight[kClasses];
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    weight[c] = c < p.classes() ? memory.weight2[c * memory.hidden_stride + column] : T(0);
  }
#pragma unroll 1
  for (int first = 0; first < rows; first += kScatterRows) {
    T gradient[kScatterRows];
#pragma unroll
    for (int r = 0; r < kScatterRows; ++r) {  // rows beyond the last have dz = 0
      const T h = memory.hidden[(first + r) * memory.hidden_stride + column];
      T sums[kVector] = {};  // several, so that additions need not wait for each other
#pragma unroll
      for (int c = 0; c < kClasses; c += kVector) {
        const Vector<T> dz = load_vector(memory.logits + (first + r) * MlpMemory<T, kClasses>::kLogitStride + c);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          weight_gradient[c + i] += dz.values[i] * h;
          sums[i] += dz.values[i] * weight[c + i];
        }
      }
      T sum = sums[0];
#pragma unroll
      for (int i = 1; i < kVector; ++i) sum += sums[i];
      gradient[r] = sum * (1 - h * h);
    }
#pragma unroll
    for (int r = 0; r < kScatterRows; ++r) {
      for (int t = 0; t < p.context_length; ++t) {
        const int key = memory.keys[(first + r) * p.context_length + t];
        if (key >= 0) memory.table_gradient[key * p.hidden_dim + column] += gradient[r];
      }
    }
  }
}

// At most so many threads, one for each hidden unit: their registers hold 2 * kClasses values each.
template <typename T, int kClasses>
inline constexpr int kMlpThreads = kClasses * sizeof(T) <= 128 ? 512 : 256;

template <typename T, bool kPlain, int kClasses>
__global__ void __launch_bounds__(kMlpThreads<T, kClasses>) mlp_tiles(const MlpTiles<T> p) {
  using Memory = MlpMemory<T, kClasses>;
  const Memory memory(p);
  const int column = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int classes = p.classes(), filled = (p.hidden_dim + Memory::kVector - 1) / Memory::kVector * Memory::kVector;
  const bool has_gradient = p.gradients != nullptr, exists = column < p.hidden_dim;
  const T scale = has_gradient ? gradient_scale<T>(p.loss, p.run) : T(0);

  T weight_gradient[kClasses] = {}, bias_gradient = 0, loss = 0, mean_weight = 0;
  for (int c = 0; c < classes && column < filled; ++c) {
    memory.weight2[c * memory.hidden_stride + column] =
        exists ? p.weight2[static_cast<int64_t>(c) * p.hidden_dim + column] : T(0);
  }
  for (int r = column; r < p.tile_rows; r += threads) {  // dz of classes that there are not
    for (int c = classes; c < kClasses; ++c) memory.logits[r * Memory::kLogitStride + c] = 0;
  }
  if (has_gradient && exists) {
    for (int row = 0; row < p.table_rows; ++row) memory.table_gradient[row * p.hidden_dim + column] = 0;
  }

  for (int64_t tile = 0; tile < p.tiles_per_block; ++tile) {
    const int64_t first = (blockIdx.x * p.tiles_per_block + tile) * p.tile_rows, left = p.loss.rows - first;
    if (left <= 0) break;
    const int rows = left < p.tile_rows ? static_cast<int>(left) : p.tile_rows;
    __syncthreads();  // the tile before is done with
    for (int i = column; i < p.tile_rows * p.context_length; i += threads) {
      memory.keys[i] = i < rows * p.context_length ? p.keys[first * p.context_length + i] : -1;
    }
    __syncthreads();
    if (column < filled) hidden_column<T, kClasses>(p, memory, column, rows);
    __syncthreads();
    for (int i = column; i < p.tile_rows / kLogitRows * classes; i += threads) {
      logits_of_class<T, kClasses>(p, memory, i % classes, i / classes * kLogitRows);
    }
    __syncthreads();
    for (int r = column / kRowLanes; r < p.tile_rows; r += threads / kRowLanes) {
      T* logits = memory.logits + r * Memory::kLogitStride;
      finish_row<T, kPlain, kClasses>(p, logits, first + r, r < rows, scale, &loss, &mean_weight);
    }
    if (!has_gradient) continue;
    __syncthreads();
    if (exists) add_column_gradients<T, kClasses>(p, memory, column, rows, weight_gradient);
    if (column < classes) {
      for (int r = 0; r < rows; ++r) bias_gradient += memory.logits[r * Memory::kLogitStride + column];
    }
  }

  write_parts(p.run, loss, mean_weight, memory.scratch);
  if (!has_gradient) return;
  T* gradients = p.gradients + blockIdx.x * p.gradient_values();
  if (exists) {
    for (int row = 0; row < p.table_rows; ++row) {
      gradients[static_cast<int64_t>(row) * p.hidden_dim + column] = memory.table_gradient[row * p.hidden_dim + column];
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      if (c < classes)
        gradients[p.table_values() + static_cast<int64_t>(c) * p.hidden_dim + column] = weight_gradient[c];
    }
  }
  if (column < classes) gradients[p.table_values() + p.weight2_values() + column] = bias_gradient;
}

}  // namespace
}  // namespace charlm::cuda
