// Working memory of kernels, allocated by torch.
#pragma once

#include <cstring>

#include "bindings/check.h"
#include "kernels/parallel.h"

namespace charlm {

// `count` values of T, aligned to cache lines and zero.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : tensor_(allocate({count + kLine}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float)) {
    T* begin = tensor_.template mutable_data_ptr<T>();
    std::memset(begin, 0, (count + kLine) * sizeof(T));
    data_ = begin + (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64 / sizeof(T);
  }
  T* data() const { return data_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  Tensor tensor_;
  T* data_;
};

// Runs the parts of a kernel on torch's threads.
inline void run_parallel(int64_t count, Parallel::Body body, const void* context) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

}  // namespace charlm
