// Contexts, targets and other integer tensors, checked and as int32.
#pragma once

#include "bindings/checks.h"
#include "kernels/batch.h"
#include "kernels/host_library.h"

namespace charlm {

// `tensor`, of any integer dtype and strides, as contiguous int32. Throws IndexError at the first value outside
// [0, limit), before the conversion could wrap it.
Tensor checked_int32(const char* name, const Tensor& tensor, int64_t limit, const char* what);
// The same as int64.
Tensor checked_int64(const char* name, const Tensor& tensor, int64_t limit, const char* what);

// Examples with the memory that they point to.
struct Examples {
  ContextTable contexts;
  Tensor tokens;  // of the contexts
  Workspace<Example> pairs;
};
// Example i is number indices[i] of contexts (N, T) and targets (N,); or of contexts (U, T), each once, context_index
// (N,) and targets (N,). Null: all N. Reads and checks what the indices name, in time proportional to their number.
// A target that is `ignore_index`, null for none, becomes kIgnored.
Examples read_examples(const char* contexts_name, const Tensor& contexts, const char* targets_name,
                       const Tensor& targets, const OptionalTensor& context_index, int64_t vocab_size,
                       const int64_t* indices, int64_t count, const int64_t* ignore_index = nullptr);

}  // namespace charlm
