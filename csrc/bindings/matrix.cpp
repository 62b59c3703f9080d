#include "bindings/matrix.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

namespace charlm {

Tensor matrix_view(const Tensor& base, int64_t offset, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(base.get(), 2, sizes, strides, offset, &handle));
  return Tensor(handle);
}

Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t end) {
  return matrix_view(matrix, begin * matrix.stride(0), end - begin, matrix.size(1), matrix.stride(0), matrix.stride(1));
}

Tensor columns_of(const Tensor& matrix, int64_t begin, int64_t end) {
  return matrix_view(matrix, begin * matrix.stride(1), matrix.size(0), end - begin, matrix.stride(0), matrix.stride(1));
}

Tensor transposed(const Tensor& matrix) {
  return matrix_view(matrix, 0, matrix.size(1), matrix.size(0), matrix.stride(1), matrix.stride(0));
}

namespace {

// The inner dimension is cut as well: past 256 the library lets several threads share a sum, even where it has only
// one.
constexpr int64_t kTileRows = 128, kTileColumns = 256, kTileInner = 256;

void multiply_tile(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  const int64_t inner = a.size(1);
  for (int64_t k = 0; k == 0 || k < inner; k += kTileInner) {
    const int64_t end = std::min(k + kTileInner, inner);
    const Tensor left = columns_of(a, k, end), right = rows_of(b, k, end);
    if (accumulate || k > 0) {
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1.0, 1.0));
    } else {
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
    }
  }
}

void multiply_tiles(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  const int64_t rows = out.size(0), columns = out.size(1);
  const int64_t down = (rows + kTileRows - 1) / kTileRows, across = (columns + kTileColumns - 1) / kTileColumns;
  // At least two items: a lone one would run outside of the parallel region, where torch's product uses all threads.
  torch::stable::parallel_for(0, std::max<int64_t>(2, down * across), 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < std::min(last, down * across); ++tile) {
      const int64_t r = tile / across * kTileRows, c = tile % across * kTileColumns;
      const int64_t r_end = std::min(r + kTileRows, rows), c_end = std::min(c + kTileColumns, columns);
      multiply_tile(columns_of(rows_of(out, r, r_end), c, c_end), rows_of(a, r, r_end), columns_of(b, c, c_end),
                    accumulate);
    }
  });
}

}  // namespace

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) { multiply_tiles(out, a, b, false); }

void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) { multiply_tiles(out, a, b, true); }

}  // namespace charlm
