// Rows of a class matrix as contiguous rows: in place where they are that, otherwise by way of scratch of the compute
// type. It lets a row kernel be written once for every layout.
#pragma once

#include "kernels/cpu/convert.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename S>
struct Rows {
  S* data = nullptr;
  int64_t stride = 0;
  bool packed = false;

  S* row(int64_t r) const { return data + r * stride; }
};

// Whether its rows are contiguous values of S.
template <typename S>
bool is_direct(const ClassMatrix& matrix) {
  return matrix.storage == kStorageOf<S> && matrix.class_stride == 1 && matrix.inner == 1 && matrix.block_classes == 0;
}

// scratch may be missing where the matrix is direct.
template <typename S>
Rows<S> open_rows(const ClassMatrix& matrix, int64_t first, int64_t classes, S* scratch) {
  if (matrix.data == nullptr) return {};
  if (is_direct<S>(matrix))
    return {static_cast<S*>(matrix.data) + matrix.row_offset(first), matrix.outer_stride, false};
  return {scratch, classes, true};
}

// The strided pieces that rows [first, first + count) of a matrix consist of:
// function(offset in the matrix, row stride, class stride, first row and class of the piece, its rows and classes).
template <typename Function>
void for_each_piece(const ClassMatrix& matrix, int64_t first, int64_t count, int64_t classes,
                    const Function& function) {
  if (matrix.block_classes > 0) {
    for (int64_t c = 0; c < classes; c += matrix.block_classes) {
      const int64_t width = classes - c < matrix.block_classes ? classes - c : matrix.block_classes;
      function(c / matrix.block_classes * matrix.block_stride + first * width, width, 1, 0, c, count, width);
    }
    return;
  }
  for (int64_t done = 0, rows; done < count; done += rows) {  // rows of one outer index have one stride
    const int64_t left = matrix.inner == 1 ? count : matrix.inner - (first + done) % matrix.inner;
    rows = left < count - done ? left : count - done;
    function(matrix.row_offset(first + done), matrix.inner == 1 ? matrix.outer_stride : matrix.inner_stride,
             matrix.class_stride, done, 0, rows, classes);
  }
}

template <typename T>
void read_rows(const Rows<T>& rows, const ClassMatrix& matrix, int64_t first, int64_t count, int64_t classes) {
  if (!rows.packed) return;
  with_storage<T>(matrix, [&](auto* data) {
    for_each_piece(matrix, first, count, classes,
                   [&](int64_t offset, int64_t row_stride, int64_t class_stride, int64_t row, int64_t c, int64_t n,
                       int64_t width) {
                     pack_rows(data + offset, row_stride, class_stride, n, width, rows.row(row) + c, rows.stride);
                   });
  });
}

template <typename T>
void write_rows(const Rows<T>& rows, const ClassMatrix& matrix, int64_t first, int64_t count, int64_t classes) {
  if (!rows.packed) return;
  with_storage<T>(matrix, [&](auto* data) {
    for_each_piece(matrix, first, count, classes,
                   [&](int64_t offset, int64_t row_stride, int64_t class_stride, int64_t row, int64_t c, int64_t n,
                       int64_t width) {
                     unpack_rows(rows.row(row) + c, rows.stride, n, width, data + offset, row_stride, class_stride);
                   });
  });
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
