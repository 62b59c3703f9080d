// "project" to the rows of a batch: rows of the table P summed into outputs, and gradients of outputs summed into rows
// of dP. embedding_linear_projection.cuh has the rest.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/row_grid.cuh"
#include "kernels/cuda/table_column.cuh"

namespace charlm::cuda {
namespace {

// What kernels over the rows of a batch share. A key is the row of P that belongs to an id or, without a table, the id.
// Where one id of a row is out of range all keys of the row are -1.
template <typename S>
struct LayerRows {
  int64_t rows, context_length, hidden_dim;
  Activation activation;
  const int32_t* keys;      // (N, T)
  const Compute<S>* table;  // P, null: none
  const S* pre;             // (N, H) the products without the bias, where there is no table
  const S* bias;            // null: none
  S* output;
  const S* grad_output;

  // The gradients of hidden unit h before the activation, in kRows rows that exist: at(matrix, r) is where a matrix
  // (N, H) has it of row r, and key(r, t) a key of that row. Loads wait for nothing that is loaded but keys; a row that
  // has a bad id, whose gradient is 0, loads what another id names.
  template <int kRows, typename At, typename Key>
  __device__ void load_gradients(const At& at, const Key& key, const bool (&valid)[kRows], int64_t h,
                                 Compute<S> (&gradients)[kRows]) const {
    using T = Compute<S>;
    // Where the slope of the activation takes neither, a matrix that is read anyway.
    const S* from = derivative_uses_output(activation) ? output : pre != nullptr ? pre : grad_output;
    S upstream[kRows], stored[kRows];  // converted when all are on their way
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      upstream[r] = *at(grad_output, r);
      stored[r] = *at(from, r);
    }
    T values[kRows];  // of which the slope is a function
#pragma unroll
    for (int r = 0; r < kRows; ++r) values[r] = to_compute(stored[r]);
    if (derivative_uses_input(activation)) complete_inputs(key, h, values);
    with_activation_slope<T>(activation, [&](const auto& slope) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const T gradient = to_compute(upstream[r]) * slope(values[r]);
        gradients[r] = valid[r] ? gradient : T(0);
      }
    });
  }

  // Products and bias, or rows of P and bias.
  template <int kRows, typename Key>
  __device__ void complete_inputs(const Key& key, int64_t h, Compute<S> (&inputs)[kRows]) const {
    const Compute<S> added = bias != nullptr ? to_compute(bias[h]) : Compute<S>(0);
#pragma unroll
    for (int r = 0; r < kRows; ++r) inputs[r] = table == nullptr ? inputs[r] + added : added;
    if (table == nullptr) return;
#pragma unroll 1
    for (int t = 0; t < context_length; ++t) {
      int row[kRows];
      Compute<S> values[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) row[r] = key(r, t);
#pragma unroll
      for (int r = 0; r < kRows; ++r) values[r] = table[(row[r] > 0 ? row[r] : 0) * hidden_dim + h];
#pragma unroll
      for (int r = 0; r < kRows; ++r) inputs[r] += values[r];
    }
  }
};

// output = activation(bias + the rows of P). Its time is that of writing N x H: P is read from the caches, of the
// multiprocessor itself where it is the few ten KB of a character model. A thread has one vector of columns. Of
// kTableRows rows and kTablePositions positions it loads all keys, then all that these name, with no branch between:
// where there is no such row, or its id is bad, another one is read.
template <typename T>
inline constexpr int kTableRows = sizeof(T) == sizeof(double) ? 4 : 8;  // what registers have room for
inline constexpr int kTablePositions = 3;

struct TableShape {
  dim3 threads;
  int64_t blocks;
  int rounds;  // of a thread, kTableRows rows each

  template <typename S>
  static TableShape of(const LayerRows<S>& p, int width) {
    constexpr int64_t kEnoughBlocks = 512, kMaxRounds = 8;  // twice what an H100 runs at once
    const RowGrid one_round = RowGrid::of(p.rows, p.hidden_dim / width, kTableRows<Compute<S>>);
    int64_t rounds = one_round.blocks / kEnoughBlocks;
    rounds = rounds < 1 ? 1 : rounds > kMaxRounds ? kMaxRounds : rounds;
    return {one_round.threads, (one_round.blocks + rounds - 1) / rounds, static_cast<int>(rounds)};
  }
};

// Adds the next kPositions rows of P to each sum.
template <int kPositions, int kRows, int kWidth, typename T>
__device__ inline void add_table_rows(const T* table, int row_bytes, const int32_t* (&keys)[kRows], int t,
                                      T (&sums)[kRows][kWidth]) {
  int key[kPositions][kRows];
  T values[kPositions][kRows][kWidth];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) key[i][r] = keys[r][t + i];
  }
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      load_values<kWidth>(row_at(table, key[i][r] > 0 ? key[i][r] : 0, row_bytes), values[i][r]);
    }
  }
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[r][j] += values[i][r][j];
    }
  }
}

template <typename S, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads, 2) sum_table_rows(const LayerRows<S> p, const TableShape shape) {
  using T = Compute<S>;
  constexpr int kRows = kTableRows<T>;
  const int context_length = static_cast<int>(p.context_length), columns = static_cast<int>(p.hidden_dim);
  // Rows of the table, and so all others, are smaller than kProjectedTableBytes.
  const int key_bytes = context_length * static_cast<int>(sizeof(int32_t));
  const int table_bytes = columns * static_cast<int>(sizeof(T)), output_bytes = columns * static_cast<int>(sizeof(S));
  const int row_step = static_cast<int>(blockDim.y), most = row_step * kRows * shape.rounds;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * most, left = p.rows - first_row;
  const int rows = left < most ? static_cast<int>(left) : most;
  const int32_t* block_keys = p.keys + first_row * p.context_length;
  for (int h = static_cast<int>(threadIdx.x) * kWidth; h < columns; h += static_cast<int>(blockDim.x) * kWidth) {
    T bias[kWidth] = {};
    if (p.bias != nullptr) load_values<kWidth>(p.bias + h, bias);
    const T* table = p.table + h;
    S* output = p.output + first_row * p.hidden_dim + h;
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.y); first < rows; first += row_step * kRows) {
      const int32_t* keys[kRows];
      T sums[kRows][kWidth];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r * row_step;
        keys[r] = row_at(block_keys, row < rows ? row : rows - 1, key_bytes);
      }
      bool valid[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) valid[r] = *keys[r] >= 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[r][i] = valid[r] ? bias[i] : not_a_number<T>();
      }
      int t = 0;
#pragma unroll 1
      for (; t + kTablePositions <= context_length; t += kTablePositions) {
        add_table_rows<kTablePositions>(table, table_bytes, keys, t, sums);
      }
#pragma unroll 1
      for (; t < context_length; ++t) add_table_rows<1>(table, table_bytes, keys, t, sums);
      with_activation<S>(p.activation, [&](const auto& function) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) sums[r][i] = function(sums[r][i]);
          const int row = first + r * row_step;
          if (row < rows) store_values<kWidth>(row_at(output, row, output_bytes), sums[r]);
        }
      });
    }
  }
}

// dP of few pairs: every warp has a table of its own, 32 columns wide, in shared memory, and each of its lanes adds to
// one column: no two threads ever write one place, and the order is that of the rows. Reading grad_output and output is
// what takes the time.
inline constexpr int kScatterWarps = 4;
template <typename T>  // rows whose loads are under way at the same time: what registers have room for
inline constexpr int kScatterRows = sizeof(T) == sizeof(double) ? 4 : 8;
inline constexpr int64_t kScatterSharedBytes = 48 << 10;  // four blocks a multiprocessor
inline constexpr int64_t kScatterBlocks = 1024;           // fill every multiprocessor several times over
inline constexpr int64_t kScatterMinRows = 128;

struct ScatterShape {
  int64_t table_rows, column_blocks, rows_per_block, row_blocks;
  int warps;  // 0: a table does not fit

  static ScatterShape of(int64_t rows, int64_t table_rows, int64_t columns, int64_t value_size) {
    ScatterShape shape{table_rows, (columns + kWarp - 1) / kWarp, 0, 0, 0};
    const int64_t fitting = kScatterSharedBytes / (table_rows * kWarp * value_size);
    shape.warps = static_cast<int>(fitting > kScatterWarps ? kScatterWarps : fitting);
    const int64_t most = kScatterBlocks / shape.column_blocks, least = most > 1 ? most : 1;
    int64_t per_block = (rows + least - 1) / least;
    // Each block writes a table: let it read more than that.
    if (per_block < kScatterMinRows) per_block = kScatterMinRows;
    if (per_block < table_rows) per_block = table_rows;
    shape.rows_per_block = per_block;
    shape.row_blocks = (rows + per_block - 1) / per_block;
    return shape;
  }
  int64_t shared_bytes(int64_t value_size) const { return warps * table_rows * kWarp * value_size; }
};

// Block (rows, columns): partial[rows] is the dP of its rows.
template <typename S>
__global__ void __launch_bounds__(kScatterWarps* kWarp, sizeof(S) == sizeof(double) ? 2 : 4)
    scatter_into_tables(const LayerRows<S> p, const ScatterShape shape, Compute<S>* partial) {
  using T = Compute<S>;
  constexpr int kRows = kScatterRows<T>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  T* tables = reinterpret_cast<T*>(dynamic_shared());
  T* column = tables + warp * shape.table_rows * kWarp + lane;
  const int64_t row_block = blockIdx.x / shape.column_blocks;
  const int64_t first_column = blockIdx.x % shape.column_blocks * kWarp, h = first_column + lane;
  for (int64_t i = 0; i < shape.table_rows; ++i) column[i * kWarp] = 0;

  const int64_t end = (row_block + 1) * shape.rows_per_block;
  const int64_t last = h >= p.hidden_dim ? 0 : end < p.rows ? end : p.rows;  // no rows for lanes beyond the columns
  const int context_length = static_cast<int>(p.context_length);
  // Of rows of matrices that are smaller than kProjectedTableBytes.
  const int key_bytes = context_length * static_cast<int>(sizeof(int32_t));
  const int row_bytes = static_cast<int>(p.hidden_dim) * static_cast<int>(sizeof(S));
  for (int64_t first = row_block * shape.rows_per_block + warp * kRows; first < last; first += shape.warps * kRows) {
    const int rows = last - first < kRows ? static_cast<int>(last - first) : kRows;
    const int64_t first_place = first * p.hidden_dim + h;
    const int32_t* first_keys = p.keys + first * p.context_length;
    const auto at = [&](const S* matrix, int r) {
      return row_at(matrix + first_place, r < rows ? r : rows - 1, row_bytes);
    };
    const auto key = [&](int r, int t) { return *row_at(first_keys + t, r < rows ? r : rows - 1, key_bytes); };
    int keys[kRows][kPositions];
    const auto load_keys = [&](int t) {
#pragma unroll
      for (int i = 0; i < kPositions; ++i) {
        const int position = t + i < context_length ? t + i : t;
#pragma unroll
        for (int r = 0; r < kRows; ++r) keys[r][i] = key(r, position);
      }
    };
    load_keys(0);
    bool valid[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) valid[r] = r < rows && keys[r][0] >= 0;
    T gradients[kRows];
    p.load_gradients(at, key, valid, h, gradients);
#pragma unroll 1
    for (int t = 0;;) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) add_to_places(column, kWarp, keys[r], gradients[r]);
      t += kPositions;
      if (t >= context_length) break;
      load_keys(t);
    }
  }
  __syncthreads();
  const int64_t size = shape.table_rows * kWarp;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
    T sum = tables[i];
    for (int other = 1; other < shape.warps; ++other) sum += tables[other * size + i];
    const int64_t to_column = first_column + i % kWarp;
    if (to_column < p.hidden_dim) {
      partial[(row_block * shape.table_rows + i / kWarp) * p.hidden_dim + to_column] = sum;
    }
  }
}

}  // namespace
}  // namespace charlm::cuda
