// A small model in one kernel: from ids to losses and gradients, a tile of rows at a time, in shared memory.
//
//   h = tanh(bias1 + rows of P)      a thread owns a hidden unit, for all rows of the tile
//   z = h W2^T + bias2               a thread owns a class, for kLogitRows rows at a time
//   dz from z                        kRowLanes lanes share a row
//   dW2 += dz^T h                    a thread owns a hidden unit again: its column of W2 and of dW2 is in registers,
//   dpre = (dz W2) (1 - h^2)         and so every dz that it reads serves both products,
//   rows of dP += dpre               and no two threads ever add to one place of dP
//
// dP stays in shared memory where it fits beside the tile; else each block adds to its own in the second-level cache.
// Nothing of size N x H or N x V is written: a block reads keys and targets, and at its end writes its dP, dW2 and
// dbias2, which the caller adds up. So a batch of a million rows is bound by arithmetic, 6 V H operations a row.
#pragma once

#include "kernels/cuda/cross_entropy_narrow.cuh"
#include "kernels/cuda/table_column.cuh"

namespace charlm::cuda {
namespace {

template <int kClasses>  // rows whose loads from P are under way at the same time: what registers have room for
inline constexpr int kHiddenRows = kClasses <= 28 ? 8 : 4;
inline constexpr int kLogitRows = 8;
inline constexpr int kRowLanes = 4;
inline constexpr int kRowPart = 7;  // logits that one of them holds at a time: 27 classes are one part
template <int kClasses>             // rows whose keys a thread has at the same time
inline constexpr int kTableGradientRows = kClasses <= 28 ? 4 : 2;
inline constexpr int kWeightsAhead = 4;  // of a column of W2, whose loads are under way at the same time
inline constexpr int kMaxTileRows = 64, kMinTileRows = 16;

template <typename T>
struct MlpTiles {
  const int32_t* keys;  // (N, T) rows of P; -1 throughout a row that has a bad id
  const T* table;       // P
  const T* bias1;       // null: zeros, like bias2
  const T* weight2;     // (V, H)
  const T* bias2;
  T* gradients;  // (blocks, gradient_values()): dP, dW2 and dbias2 of each block
  bool has_gradient;
  CrossEntropy<T> loss;  // input and input_gradient are not read
  CrossEntropyRun<T> run;
  int64_t tiles_per_block;
  int context_length, hidden_dim, table_rows, tile_rows;

  __host__ __device__ int classes() const { return static_cast<int>(loss.classes); }
  __host__ __device__ int64_t table_values() const { return static_cast<int64_t>(table_rows) * hidden_dim; }
  __host__ __device__ int64_t weight2_values() const { return static_cast<int64_t>(classes()) * hidden_dim; }
  __host__ __device__ int64_t gradient_values() const { return table_values() + weight2_values() + classes(); }
  __device__ T* gradients_of_block() const { return gradients + blockIdx.x * gradient_values(); }
};

// The shared memory of a block. Row strides are such that vectors of neighbouring rows lie in different banks.
template <typename T, int kClasses, bool kTableInShared>
struct MlpMemory {
  static constexpr int kRoom = kClasses, kVector = kVectorWidth<T>;
  static constexpr int kLogitStride = (kClasses / kVector | 1) * kVector;
  static_assert(kClasses % kVector == 0 && kClasses % kWeightsAhead == 0);

  int hidden_stride;
  T* hidden;          // (rows, H)
  T* weight2;         // (kClasses, H), 0 for classes that there are not
  T* logits;          // (rows, kClasses), then dz
  T* scratch;         // (2 * kWarp,)
  T* table_gradient;  // the block's dP, contiguous
  int* keys;          // (rows, T)

  __host__ __device__ static int stride_of(int hidden_dim) {
    return ((hidden_dim + kVector - 1) / kVector | 1) * kVector;  // an odd number of vectors
  }
  __host__ __device__ static int64_t table_values(const MlpTiles<T>& p) {
    return kTableInShared && p.has_gradient ? p.table_values() : 0;
  }
  static int64_t bytes(const MlpTiles<T>& p) {
    const int64_t stride = stride_of(p.hidden_dim);
    const int64_t values = (p.tile_rows + kClasses) * stride + p.tile_rows * kLogitStride + 2 * kWarp + table_values(p);
    return values * static_cast<int64_t>(sizeof(T)) +
           p.tile_rows * p.context_length * static_cast<int64_t>(sizeof(int));
  }
  __device__ explicit MlpMemory(const MlpTiles<T>& p) : hidden_stride(stride_of(p.hidden_dim)) {
    hidden = reinterpret_cast<T*>(dynamic_shared());
    weight2 = hidden + p.tile_rows * hidden_stride;
    logits = weight2 + kClasses * hidden_stride;
    scratch = logits + p.tile_rows * kLogitStride;
    table_gradient = scratch + 2 * kWarp;
    keys = reinterpret_cast<int*>(table_gradient + table_values(p));
    if (!kTableInShared) table_gradient = p.gradients_of_block();
  }
};

// h of one hidden unit. Columns beyond H fill up the last vector of a row, and are 0.
template <typename T, typename Memory>
__device__ inline void hidden_column(const MlpTiles<T>& p, const Memory& memory, int column, int rows) {
  constexpr int kRows = kHiddenRows<Memory::kRoom>;
  const bool exists = column < p.hidden_dim;
  const T bias = exists && p.bias1 != nullptr ? p.bias1[column] : T(0);
  const T* table = p.table + (exists ? column : 0);
#pragma unroll 1
  for (int first = 0; first < p.tile_rows; first += kRows) {
    const int* keys = memory.keys + first * p.context_length;
    T sums[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] = keys[r * p.context_length] >= 0 ? bias : not_a_number<T>();
#pragma unroll 1
    for (int t = 0; t < p.context_length; ++t) {
      int key[kRows];
      T values[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) key[r] = keys[r * p.context_length + t];
#pragma unroll
      for (int r = 0; r < kRows; ++r) values[r] = table[(key[r] > 0 ? key[r] : 0) * p.hidden_dim];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[r] += values[r];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const T h = fast_tanh<T>(sums[r]);
      memory.hidden[(first + r) * memory.hidden_stride + column] = exists && first + r < rows ? h : T(0);
    }
  }
}

template <typename T, typename Memory>
__device__ inline void logits_of_class(const MlpTiles<T>& p, const Memory& memory, int c, int first) {
  constexpr int kVector = Memory::kVector;
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
    memory.logits[(first + r) * Memory::kLogitStride + c] = sums[r] + bias;
  }
}

// The loss of one row, and its logits replaced by dz. All lanes of a warp take part, also for rows beyond the last.
template <typename T, bool kPlain>
__device__ inline void finish_row(const MlpTiles<T>& p, T* logits, int64_t row, bool exists, T scale, T* loss,
                                  T* mean_weight) {
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes;
  const SoftmaxPart<T> part =
      merge_lanes<T, kPlain>(narrow_part<T, kPlain, kRowLanes, kRowPart>(p.loss, logits, lane), kRowLanes);
  const T sum = part.exact_sum(), log_sum = log(sum);
  const RowTarget<T> target = exists ? row_target(p.loss, p.loss.target[row]) : RowTarget<T>{};
  if (exists && lane == 0) {
    const T target_input = target.index >= 0 ? logits[target.index] : T(0);
    const T value = row_loss<T, kPlain>(p.loss, target, part, log_sum, target_input);
    if (p.run.row_loss != nullptr) p.run.row_loss[row] = value;
    *loss += value;
    *mean_weight += target.class_weight;
  }
  if (!p.has_gradient) return;
  RowGradient<T> gradient;
  if (exists) gradient = row_gradient<T, kPlain>(p.loss, row, target, part.shift, sum, log_sum, part.total, scale);
  const bool counts = exists && !target.ignored;
  __syncwarp();  // lane 0 has read the target's logit
  for (int c = lane; c < p.classes(); c += kRowLanes) {
    logits[c] = counts ? input_gradient<T, kPlain>(p.loss, gradient, logits[c], c == target.index, c, T(0)) : T(0);
  }
}

// The value, for all that the compiler knows another one each time: addresses that are computed from it do not stay in
// registers, one for each class, from tile to tile.
__device__ inline int computed_again(int value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// What the rows of a tile add to a column of dW2; h of the column becomes dpre. Rows beyond the last have dz = 0.
template <typename T, typename Memory>
__device__ inline void add_weight_gradient(const MlpTiles<T>& p, const Memory& memory, int column,
                                           T (&weight_gradient)[Memory::kRoom]) {
  constexpr int kVector = Memory::kVector;
  T weight[Memory::kRoom];
  const T* from = memory.weight2 + computed_again(column);
#pragma unroll
  for (int c = 0; c < Memory::kRoom; ++c) weight[c] = from[c * memory.hidden_stride];
#pragma unroll 1  // more would not fit into registers
  for (int r = 0; r < p.tile_rows; ++r) {
    const T h = memory.hidden[r * memory.hidden_stride + column];
    T sums[kVector] = {};  // several, so that additions need not wait for each other
#pragma unroll
    for (int c = 0; c < Memory::kRoom; c += kVector) {
      const Vector<T> dz = load_vector(memory.logits + r * Memory::kLogitStride + c);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        weight_gradient[c + i] += dz.values[i] * h;
        sums[i] += dz.values[i] * weight[c + i];
      }
    }
    T sum = sums[0];
#pragma unroll
    for (int i = 1; i < kVector; ++i) sum += sums[i];
    memory.hidden[r * memory.hidden_stride + column] = sum * (1 - h * h);
  }
}

// What they add to that column of dP.
template <typename T, typename Memory>
__device__ inline void add_table_gradient(const MlpTiles<T>& p, const Memory& memory, int column, int rows) {
  constexpr int kRows = kTableGradientRows<Memory::kRoom>;
  T* table = memory.table_gradient + column;
#pragma unroll 1
  for (int first = 0; first < rows; first += kRows) {
    const int* keys = memory.keys + first * p.context_length;
    T gradients[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {  // none of a row that has a bad id or is not there
      const T gradient = memory.hidden[(first + r) * memory.hidden_stride + column];
      gradients[r] = keys[r * p.context_length] >= 0 ? gradient : T(0);
    }
#pragma unroll 1
    for (int t = 0; t < p.context_length; t += kPositions) {
      int key[kRows][kPositions];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kPositions; ++i) {
          key[r][i] = keys[r * p.context_length + (t + i < p.context_length ? t + i : t)];
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) add_to_places(table, p.hidden_dim, key[r], gradients[r]);
    }
  }
}

// At most so many threads, one for each hidden unit: their registers hold 2 * kClasses values each.
template <typename T, int kClasses>
inline constexpr int kMlpThreads = kClasses * sizeof(T) <= 112 ? 512 : 256;

template <typename T, bool kPlain, int kClasses, bool kTableInShared>
__global__ void __launch_bounds__(kMlpThreads<T, kClasses>) mlp_tiles(const MlpTiles<T> p) {
  using Memory = MlpMemory<T, kClasses, kTableInShared>;
  const Memory memory(p);
  const int column = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int classes = p.classes(), filled = (p.hidden_dim + Memory::kVector - 1) / Memory::kVector * Memory::kVector;
  const bool exists = column < p.hidden_dim;
  const T scale = p.has_gradient ? gradient_scale<T>(p.loss, p.run) : T(0);

  T weight_gradient[kClasses] = {}, bias_gradient = 0, loss = 0, mean_weight = 0;
#pragma unroll 1  // or its addresses would stay in registers until they are next used
  for (int first = column < filled ? 0 : kClasses; first < kClasses; first += kWeightsAhead) {
    T weights[kWeightsAhead];
#pragma unroll
    for (int i = 0; i < kWeightsAhead; ++i) {
      weights[i] = p.weight2[(first + i < classes ? first + i : 0) * p.hidden_dim + (exists ? column : 0)];
    }
#pragma unroll
    for (int i = 0; i < kWeightsAhead; ++i) {
      memory.weight2[(first + i) * memory.hidden_stride + column] = exists && first + i < classes ? weights[i] : T(0);
    }
  }
  for (int r = column; r < p.tile_rows; r += threads) {  // dz of classes that there are not
    for (int c = classes; c < kClasses; ++c) memory.logits[r * Memory::kLogitStride + c] = 0;
  }
  if (p.has_gradient && exists) {
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
    if (column < filled) hidden_column(p, memory, column, rows);
    __syncthreads();
    for (int i = column; i < p.tile_rows / kLogitRows * classes; i += threads) {
      logits_of_class(p, memory, i % classes, i / classes * kLogitRows);
    }
    __syncthreads();
    for (int r = column / kRowLanes; r < p.tile_rows; r += threads / kRowLanes) {
      T* logits = memory.logits + r * Memory::kLogitStride;
      finish_row<T, kPlain>(p, logits, first + r, r < rows, scale, &loss, &mean_weight);
    }
    if (!p.has_gradient) continue;
    __syncthreads();
    if (exists) {
      add_weight_gradient(p, memory, column, weight_gradient);
      add_table_gradient(p, memory, column, rows);
    }
    if (column < classes) {
      for (int r = 0; r < rows; ++r) bias_gradient += memory.logits[r * Memory::kLogitStride + column];
    }
  }

  write_parts(p.run, loss, mean_weight, memory.scratch);
  if (!p.has_gradient) return;
  T* gradients = p.gradients_of_block();
  if (exists) {
    for (int row = 0; kTableInShared && row < p.table_rows; ++row) {
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
