// What algorithms for the CPU need beside kernels: memory for the time of a call and threads, as device_library.h has
// it for GPUs. The functions of namespace host are torch's, bindings/host_library.cpp defines them; the rest is how
// they are called.
#pragma once

#include <stdint.h>

#include <cstddef>
#include <cstring>
#include <utility>

#include "kernels/parallel.h"

namespace charlm {

namespace host {

// Uninitialised memory, aligned to cache lines, never null; as many bytes, which may be more than 64 bits can count.
// Throws where there are not so many.
void* allocate(unsigned __int128 bytes);
void release(void* memory, size_t bytes);

}  // namespace host

// memset and memcpy take no null pointer, which an empty array may have, not even for 0 bytes.
inline void fill_zero(void* data, int64_t bytes) {
  if (bytes > 0) std::memset(data, 0, static_cast<size_t>(bytes));
}
inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// Uninitialised memory for the time of a call.
template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : count_(count), data_(static_cast<T*>(host::allocate(static_cast<unsigned __int128>(count) * sizeof(T)))) {}
  Workspace(Workspace&& other) noexcept : count_(other.count_), data_(std::exchange(other.data_, nullptr)) {}
  ~Workspace() {
    if (data_ != nullptr) host::release(data_, count_ * sizeof(T));
  }
  T* data() const { return data_; }

 private:
  int64_t count_;
  T* data_;
};
template <typename T>
class ZeroedWorkspace : public Workspace<T> {
 public:
  explicit ZeroedWorkspace(int64_t count) : Workspace<T>(count) { fill_zero(this->data(), count * sizeof(T)); }
};

}  // namespace charlm
