// Sums over the rows of a matrix: the gradient of a bias. Rows are cut by shape alone and added in order.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.cuh"
#include "kernels/device_library.h"

namespace charlm::cuda {
namespace {

inline constexpr int kSumRows = 8;   // rows that a block adds at a time, one for each of its warps
inline constexpr int kSumAhead = 8;  // rows of a thread whose loads are under way at the same time
inline constexpr int64_t kSlabRows = 256;
inline constexpr int64_t kMaxSlabs = 128;

// Block (slab, warp of columns): sums[slab][c], or added to what is there.
template <typename In, typename Out>
__global__ void __launch_bounds__(kWarp* kSumRows, 4)
    sum_columns(const In* matrix, int64_t rows, int64_t columns, int64_t row_stride, int64_t slab_rows, bool add,
                Out* sums) {
  using T = Compute<In>;
  __shared__ T partial[kSumRows][kWarp];
  const int64_t column_blocks = (columns + kWarp - 1) / kWarp;
  const int64_t slab = blockIdx.x / column_blocks;
  const int64_t column = blockIdx.x % column_blocks * kWarp + threadIdx.x;
  const int64_t first = slab * slab_rows, last = first + slab_rows < rows ? first + slab_rows : rows;
  T sum = 0;
  const In* from = matrix + (column < columns ? column : columns - 1);
#pragma unroll 1
  for (int64_t row = first + threadIdx.y; row < last; row += kSumAhead * kSumRows) {
    T values[kSumAhead];
#pragma unroll
    for (int k = 0; k < kSumAhead; ++k) {  // beyond the last row, the first of them
      values[k] = to_compute(from[(row + k * kSumRows < last ? row + k * kSumRows : row) * row_stride]);
    }
#pragma unroll
    for (int k = 0; k < kSumAhead; ++k) {
      if (row + k * kSumRows < last) sum += values[k];
    }
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int i = 1; i < kSumRows; ++i) sum += partial[i][threadIdx.x];
  Out* to = sums + slab * columns + column;
  *to = to_storage<Out>(add ? sum + to_compute(*to) : sum);
}

// sums (columns,) = or += the sum over rows.
template <typename In, typename Out>
Error column_sums(const In* matrix, int64_t rows, int64_t columns, int64_t row_stride, bool add, Out* sums,
                  DeviceLibrary& library, Stream stream) {
  using T = Compute<In>;
  const int64_t column_blocks = (columns + kWarp - 1) / kWarp;
  const dim3 threads(kWarp, kSumRows);
  int64_t slabs = (rows + kSlabRows - 1) / kSlabRows;
  if (slabs > kMaxSlabs) slabs = kMaxSlabs;
  if (slabs <= 1) {
    return launch(sum_columns<In, Out>, column_blocks, threads, 0, stream, matrix, rows, columns, row_stride, rows, add,
                  sums);
  }
  const int64_t slab_rows = (rows + slabs - 1) / slabs;
  slabs = (rows + slab_rows - 1) / slab_rows;
  T* partial = library.allocate_values<T>(slabs * columns);
  if (const Error error = launch(sum_columns<In, T>, column_blocks * slabs, threads, 0, stream, matrix, rows, columns,
                                 row_stride, slab_rows, false, partial)) {
    return error;
  }
  return launch(sum_columns<T, Out>, column_blocks, threads, 0, stream, static_cast<const T*>(partial), slabs, columns,
                columns, slabs, add, sums);
}

}  // namespace
}  // namespace charlm::cuda
