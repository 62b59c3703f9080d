// Matrix views and products: torch's own, called through its C interface.
#pragma once

#include "bindings/check.h"

namespace charlm {

// A (rows, columns) view that starts `offset` elements into `base`; strides in elements.
Tensor matrix_view(const Tensor& base, int64_t offset, int64_t rows, int64_t columns, int64_t row_stride,
                   int64_t column_stride = 1);
// Rows or columns [begin, end) of a matrix, and its transpose; no copies.
Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t end);
Tensor columns_of(const Tensor& matrix, int64_t begin, int64_t end);
Tensor transposed(const Tensor& matrix);

// out = a b, or out += a b. The result is cut into tiles by shape alone, each computed by one thread: the same bits for
// any number of threads, which torch's own threading does not give.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b);
void multiply_add(const Tensor& out, const Tensor& a, const Tensor& b);

}  // namespace charlm
