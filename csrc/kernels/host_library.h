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

// As many values, or a few more: whole cache lines.
template <typename T>
constexpr int64_t whole_lines(int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return (count + kLine - 1) / kLine * kLine;
}

// Bytes that are worth waking a thread for.
inline constexpr int64_t kByteGrain = 1 << 20;

// Also of empty arrays, whose null pointers memset and memcpy would not take.
inline void fill_zero(void* data, int64_t bytes) {
  parallel_for(bytes, kByteGrain, [&](int64_t first, int64_t last) {
    std::memset(static_cast<char*>(data) + first, 0, static_cast<size_t>(last - first));
  });
}
inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  parallel_for(bytes, kByteGrain, [&](int64_t first, int64_t last) {
    std::memcpy(static_cast<char*>(to) + first, static_cast<const char*>(from) + first,
                static_cast<size_t>(last - first));
  });
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
