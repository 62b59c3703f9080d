// A matrix somewhere in memory, as products take it.
#pragma once

#include <stdint.h>

#include "kernels/storage.h"

namespace charlm {

// Strides in elements; at least one of them is 1 where products are to be fast.
struct Matrix {
  void* data = nullptr;
  Storage storage = Storage::kFloat32;
  int64_t rows = 0, columns = 0;
  int64_t row_stride = 0, column_stride = 1;

  Matrix() = default;
  Matrix(const void* data, Storage storage, int64_t rows, int64_t columns)  // contiguous
      : Matrix(data, storage, rows, columns, columns, 1) {}
  Matrix(const void* data, Storage storage, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride)
      : data(const_cast<void*>(data)),
        storage(storage),
        rows(rows),
        columns(columns),
        row_stride(row_stride),
        column_stride(column_stride) {}

  Matrix transposed() const { return {data, storage, columns, rows, column_stride, row_stride}; }
  Matrix rows_from(int64_t first, int64_t count) const {
    return {at(first * row_stride), storage, count, columns, row_stride, column_stride};
  }
  Matrix columns_from(int64_t first, int64_t count) const {
    return {at(first * column_stride), storage, rows, count, row_stride, column_stride};
  }
  void* at(int64_t element) const { return static_cast<char*>(data) + element * storage_size(storage); }
};

}  // namespace charlm
