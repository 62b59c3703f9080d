#include "library.h"

#include <algorithm>
#include <numeric>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "server.h"

namespace simulator {
namespace {

using charlm::Storage;
using charlm::cuda::Matrix;

double load(const Matrix& matrix, int64_t row, int64_t column) {
  const void* at = matrix.at(row * matrix.row_stride + column * matrix.column_stride);
  switch (matrix.storage) {
    case Storage::kFloat64:
      return *static_cast<const double*>(at);
    case Storage::kBFloat16:
      return __bfloat162float(*static_cast<const __nv_bfloat16*>(at));
    case Storage::kFloat16:
      return __half2float(*static_cast<const __half*>(at));
    default:
      return *static_cast<const float*>(at);
  }
}

void store(const Matrix& matrix, int64_t row, int64_t column, double value) {
  void* at = matrix.at(row * matrix.row_stride + column * matrix.column_stride);
  switch (matrix.storage) {
    case Storage::kFloat64:
      *static_cast<double*>(at) = value;
      break;
    case Storage::kBFloat16:
      *static_cast<__nv_bfloat16*>(at) = __float2bfloat16_rn(static_cast<float>(value));
      break;
    case Storage::kFloat16:
      *static_cast<__half*>(at) = __float2half_rn(static_cast<float>(value));
      break;
    default:
      *static_cast<float*>(at) = static_cast<float>(value);
  }
}

// Everything from the first element to the last counts as written.
void mark_written(const Matrix& matrix) {
  if (matrix.rows == 0 || matrix.columns == 0) return;
  const int64_t last = (matrix.rows - 1) * matrix.row_stride + (matrix.columns - 1) * matrix.column_stride;
  initialise(matrix.data, static_cast<size_t>((last + 1) * charlm::storage_size(matrix.storage)));
}

// As cuBLAS adds up: in float32, but for float64.
template <typename T>
void multiply_as(const Matrix& out, const Matrix* addend, const Matrix& a, const Matrix& b) {
  for (int64_t i = 0; i < out.rows; ++i) {
    for (int64_t j = 0; j < out.columns; ++j) {
      T sum = addend == nullptr ? T(0) : static_cast<T>(load(*addend, addend->rows == 1 ? 0 : i, j));
      for (int64_t k = 0; k < a.columns; ++k) sum += static_cast<T>(load(a, i, k)) * static_cast<T>(load(b, k, j));
      store(out, i, j, sum);
    }
  }
  mark_written(out);
}

void product(const Matrix& out, const Matrix* addend, const Matrix& a, const Matrix& b) {
  const bool shapes = a.rows == out.rows && b.columns == out.columns && a.columns == b.rows;
  const bool types = a.storage == b.storage && (out.storage == a.storage || out.storage == Storage::kFloat32);
  const bool added = addend == nullptr || (addend->columns == out.columns && addend->storage == out.storage &&
                                           (addend->rows == 1 || addend->data == out.data));
  if (!shapes || !types || !added) refuse("a product of matrices that do not fit");
  out.storage == Storage::kFloat64 ? multiply_as<double>(out, addend, a, b) : multiply_as<float>(out, addend, a, b);
}

}  // namespace

void* Library::allocate(int64_t bytes) { return simulator::allocate(static_cast<size_t>(bytes), 0, false); }

void Library::multiply(const Matrix& out, const Matrix& a, const Matrix& b) { product(out, nullptr, a, b); }

void Library::multiply_add(const Matrix& out, const Matrix& addend, const Matrix& a, const Matrix& b) {
  product(out, &addend, a, b);
}

Library::Sorted Library::sort(const int32_t* keys, int64_t count) {
  const auto size = static_cast<size_t>(count);
  auto* order = static_cast<int64_t*>(simulator::allocate(size * sizeof(int64_t), 0, true));
  auto* sorted = static_cast<int32_t*>(simulator::allocate(size * sizeof(int32_t), 0, true));
  std::iota(order, order + count, int64_t{0});
  std::stable_sort(order, order + count, [&](int64_t i, int64_t j) { return keys[i] < keys[j]; });
  for (int64_t i = 0; i < count; ++i) sorted[i] = keys[order[i]];
  return {sorted, order};
}

}  // namespace simulator
