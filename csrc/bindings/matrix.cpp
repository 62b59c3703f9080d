#include "bindings/matrix.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

// Exported by the torch builds that contain MKL; null in the others.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace charlm {

Tensor matrix_view(const Tensor& base, int64_t offset, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(base.get(), 2, sizes, strides, offset, &handle));
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

constexpr int64_t kTileRows = 128, kTileColumns = 256;

// One thread for this thread's MKL calls: torch tells MKL to use all of them even inside a parallel region, and MKL
// then splits sums between them. Other BLAS libraries have no such function, and need none in a parallel region.
class SerialProducts {
 public:
  SerialProducts() : threads_(MKL_Set_Num_Threads_Local != nullptr ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~SerialProducts() {
    if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(threads_);
  }
  SerialProducts(const SerialProducts&) = delete;
  SerialProducts& operator=(const SerialProducts&) = delete;

 private:
  int threads_;
};

// product(tile of out, its rows of a, its columns of b)
template <typename Product>
void for_each_tile(const Tensor& out, const Tensor& a, const Tensor& b, const Product& product) {
  const int64_t rows = out.size(0), columns = out.size(1);
  const int64_t down = (rows + kTileRows - 1) / kTileRows, across = (columns + kTileColumns - 1) / kTileColumns;
  parallel_for(down * across, 1, [&](int64_t first, int64_t last) {
    const SerialProducts serial;
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t r = tile / across * kTileRows, c = tile % across * kTileColumns;
      const int64_t r_end = std::min(r + kTileRows, rows), c_end = std::min(c + kTileColumns, columns);
      product(columns_of(rows_of(out, r, r_end), c, c_end), rows_of(a, r, r_end), columns_of(b, c, c_end));
    }
  });
}

}  // namespace

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  for_each_tile(out, a, b, [](const Tensor& tile, const Tensor& rows, const Tensor& columns) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(tile.get(), rows.get(), columns.get()));
  });
}

void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) {
  for_each_tile(out, a, b, [](const Tensor& tile, const Tensor& rows, const Tensor& columns) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(tile.get(), tile.get(), rows.get(), columns.get(), 1.0, 1.0));
  });
}

}  // namespace charlm
