// What launchers need beside kernels of their own: memory for the time of a call, matrix products, a sort.
// bindings/cuda/torch_library.h has torch's.
#pragma once

#include <stdint.h>

#include "kernels/storage.h"

namespace charlm::cuda {

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
  void* at(int64_t element) const { return static_cast<char*>(data) + element * storage_size(storage); }
};

// Everything is enqueued on the stream of the launches; nothing waits for it.
class DeviceLibrary {
 public:
  // Uninitialised, aligned to 16 bytes at least, never null, until the launcher that was given this object returns.
  virtual void* allocate(int64_t bytes) = 0;
  // out = a b. a and b have one storage type; out has it too, or is float32.
  virtual void multiply(const Matrix& out, const Matrix& a, const Matrix& b) = 0;
  // out = addend + a b. The addend is out itself, or one row that is added to each.
  virtual void multiply_add(const Matrix& out, const Matrix& addend, const Matrix& a, const Matrix& b) = 0;
  // The keys in ascending order, and where each came from; equal ones stay in order.
  struct Sorted {
    const int32_t* keys;
    const int64_t* order;
  };
  virtual Sorted sort(const int32_t* keys, int64_t count) = 0;

  template <typename T>
  T* allocate_values(int64_t count) {
    return static_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }

 protected:
  ~DeviceLibrary() = default;
};

}  // namespace charlm::cuda
