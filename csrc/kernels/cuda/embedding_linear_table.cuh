// "project" to the rows of a batch: rows of the table P summed into outputs, and gradients of outputs summed into rows
// of dP. embedding_linear_projection.cuh has the rest.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/row_grid.cuh"

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

  __device__ bool is_valid(int64_t row) const { return keys[row * context_length] >= 0; }
  // d output / d pre of one hidden unit of a valid row.
  __device__ Compute<S> slope(int64_t row, int64_t h) const {
    if (derivative_uses_output(activation)) {
      return activation_slope(activation, to_compute(output[row * hidden_dim + h]));
    }
    if (!derivative_uses_input(activation)) return 1;
    Compute<S> value = bias != nullptr ? to_compute(bias[h]) : Compute<S>(0);
    if (table == nullptr) return activation_slope(activation, value + to_compute(pre[row * hidden_dim + h]));
    for (int64_t t = 0; t < context_length; ++t) {
      value += table[static_cast<int64_t>(keys[row * context_length + t]) * hidden_dim + h];
    }
    return activation_slope(activation, value);
  }
};

// output = activation(bias + the rows of P). Its time is that of writing N x H: P is read from the caches, of the
// multiprocessor itself where it is the few ten KB of a character model. A thread adds up so many rows at once that
// its loads overlap.
inline constexpr int kTableRowsAhead = 4;

template <typename S, int kWidth>
__global__ void __launch_bounds__(kRowGridThreads) sum_table_rows(const LayerRows<S> p) {
  using T = Compute<S>;
  const int64_t vectors = p.hidden_dim / kWidth;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y * kTableRowsAhead + threadIdx.y;
  for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) {
    const int64_t h = v * kWidth;
    T sums[kTableRowsAhead][kWidth] = {};
    if (p.bias != nullptr) {
      T bias[kWidth];
      load_values<kWidth>(p.bias + h, bias);
#pragma unroll
      for (int r = 0; r < kTableRowsAhead; ++r) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[r][i] = bias[i];
      }
    }
    for (int64_t t = 0; t < p.context_length; ++t) {
#pragma unroll
      for (int r = 0; r < kTableRowsAhead; ++r) {
        const int64_t row = first + r * static_cast<int64_t>(blockDim.y);
        if (row >= p.rows) continue;
        const int64_t key = p.keys[row * p.context_length + t];
        T values[kWidth];
        if (key >= 0) {
          load_values<kWidth>(p.table + key * p.hidden_dim + h, values);
        } else {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) values[i] = not_a_number<T>();
        }
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[r][i] += values[i];
      }
    }
#pragma unroll
    for (int r = 0; r < kTableRowsAhead; ++r) {
      const int64_t row = first + r * static_cast<int64_t>(blockDim.y);
      if (row >= p.rows) continue;
      activate<kWidth>(p.activation, sums[r]);
      store_values<kWidth>(p.output + row * p.hidden_dim + h, sums[r]);
    }
  }
}

// dP of few pairs: every warp has a table of its own, 32 columns wide, in shared memory, and each of its lanes adds to
// one column: no two threads ever write one place, and the order is that of the rows. Reading grad_output and output is
// what takes the time.
inline constexpr int kScatterWarps = 4;
inline constexpr int kScatterAhead = 8;                   // rows whose loads are under way at the same time
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
__global__ void __launch_bounds__(kScatterWarps* kWarp)
    scatter_into_tables(const LayerRows<S> p, const ScatterShape shape, Compute<S>* partial) {
  using T = Compute<S>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  T* tables = reinterpret_cast<T*>(dynamic_shared());
  T* column = tables + warp * shape.table_rows * kWarp + lane;
  const int64_t row_block = blockIdx.x / shape.column_blocks;
  const int64_t first_column = blockIdx.x % shape.column_blocks * kWarp, h = first_column + lane;
  for (int64_t i = 0; i < shape.table_rows; ++i) column[i * kWarp] = 0;

  const int64_t end = (row_block + 1) * shape.rows_per_block;
  const int64_t last = h >= p.hidden_dim ? 0 : end < p.rows ? end : p.rows;  // no rows for lanes beyond the columns
  for (int64_t first = row_block * shape.rows_per_block + warp * kScatterAhead; first < last;
       first += shape.warps * kScatterAhead) {
    T gradient[kScatterAhead];
#pragma unroll
    for (int r = 0; r < kScatterAhead; ++r) {
      const int64_t row = first + r;
      gradient[r] = 0;
      if (row < last && p.is_valid(row)) {
        gradient[r] = to_compute(p.grad_output[row * p.hidden_dim + h]) * p.slope(row, h);
      }
    }
#pragma unroll
    for (int r = 0; r < kScatterAhead; ++r) {
      const int64_t row = first + r;
      if (row >= last || !p.is_valid(row)) continue;
      for (int64_t t = 0; t < p.context_length; ++t) {
        column[static_cast<int64_t>(p.keys[row * p.context_length + t]) * kWarp] += gradient[r];
      }
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
