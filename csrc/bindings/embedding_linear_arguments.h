// The arguments of embedding_linear, checked: what its bindings for the CPU and for CUDA share.
#pragma once

#include "bindings/checks.h"
#include "kernels/embedding_linear.h"

namespace charlm {

// Everything but the values of the ids and the device they are on, which is that of `embedding`.
void check_embedding_linear(const Tensor& ids, const Tensor& embedding, const Tensor& weight,
                            const OptionalTensor& bias, int64_t activation);
// Of backward, which has `rows` in the place of the table.
void check_embedding_linear_backward(const Tensor& grad_output, const Tensor& output, const Tensor& ids,
                                     const Tensor& rows, const Tensor& weight, const OptionalTensor& bias,
                                     int64_t activation, int64_t vocab_size);

// Whether `rows` has the embedding of each id, and not a copy of the table, which is larger.
bool keeps_picked_rows(const Tensor& ids, int64_t vocab_size);

// The number of contexts (..., T), also where T = 0.
int64_t context_rows(const Tensor& ids);
// (..., H)
std::vector<int64_t> layer_shape(const Tensor& ids, const Tensor& weight);

// The stride from row to row where one stride walks through all dimensions but the last.
std::optional<int64_t> row_stride(const Tensor& tensor);
// A tensor that has one: itself or a copy.
Tensor with_rows(const Tensor& tensor);
// Ids that have one, of contexts that are not empty.
TokenIds token_ids(const Tensor& ids);

}  // namespace charlm
