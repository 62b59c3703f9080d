#include "bindings/matrix.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

namespace charlm {

Tensor matrix_view(const Tensor& base, int64_t offset, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(base.get(), 2, sizes, strides, offset, &handle));
  return Tensor(handle);
}

Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t end) {
  return matrix_view(matrix, begin * matrix.stride(0), end - begin, matrix.size(1), matrix.stride(0), matrix.stride(1));
}

Tensor transposed(const Tensor& matrix) {
  return matrix_view(matrix, 0, matrix.size(1), matrix.size(0), matrix.stride(1), matrix.stride(0));
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

}  // namespace charlm
