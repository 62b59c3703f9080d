// What launchers need beside kernels of their own: memory for the time of a call, matrix products, a sort.
// bindings/cuda/torch_library.h has torch's.
#pragma once

#include <stdint.h>

#include "kernels/matrix.h"

namespace charlm::cuda {

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
