// Working memory of kernels, and threads to run them on.
#pragma once

#include "bindings/check.h"
#include "kernels/denormals.h"
#include "kernels/parallel.h"

namespace charlm {

// A workspace of zeros.
template <typename T>
class ZeroedWorkspace : public Workspace<T> {
 public:
  explicit ZeroedWorkspace(int64_t count) : Workspace<T>(count) { fill_zero(this->data(), count * sizeof(T)); }
};

// Runs the parts of a kernel on torch's threads.
inline void run_parallel(int64_t count, Parallel::Body body, const void* context) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

}  // namespace charlm
