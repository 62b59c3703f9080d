// Contexts, targets and other integer tensors, checked and as int32.
#pragma once

#include "bindings/check.h"
#include "kernels/batch.h"

namespace charlm {

// Throws IndexError at the first value outside [0, limit). `columns` > 0: `values` is a matrix with so many columns.
template <typename Value>
void check_range(const char* name, const Value* values, int64_t count, int64_t columns, int64_t limit,
                 const char* what) {
  int64_t bad = 0;  // counted without a branch, so that the loop vectorises
  for (int64_t i = 0; i < count; ++i) bad += values[i] < 0 || values[i] >= limit;
  if (bad == 0) [[likely]] {
    return;
  }
  int64_t i = 0;
  while (values[i] >= 0 && values[i] < limit) ++i;
  const std::string position =
      columns > 0 ? concatenate('[', i / columns, ", ", i % columns, ']') : concatenate('[', i, ']');
  throw std::out_of_range(concatenate(name, position, " = ", values[i], " is out of range for ", limit, " ", what));
}

// `tensor`, of any integer dtype and strides, as contiguous int32. Checked before the conversion could wrap a value.
Tensor checked_int32(const char* name, const Tensor& tensor, int64_t columns, int64_t limit, const char* what);

// Examples with the memory that they point to.
struct Examples {
  ContextTable contexts;
  Tensor tokens;  // of the contexts
  Workspace<Example> pairs;
};
// Example i is number indices[i] of contexts (N, T) and targets (N,); or of contexts (U, T), each once, context_index
// (N,) and targets (N,). Null: all N. Reads and checks what the indices name, in time proportional to their number.
// A target that is `ignore_index`, null for none, becomes kIgnored.
inline constexpr int32_t kIgnored = -1;
Examples read_examples(const char* contexts_name, const Tensor& contexts, const char* targets_name,
                       const Tensor& targets, const OptionalTensor& context_index, int64_t vocab_size,
                       const int64_t* indices, int64_t count, const int64_t* ignore_index = nullptr);

}  // namespace charlm
