// What algorithms for the CPU need beside kernels: memory for the time of a call, threads, products of matrices, as
// device_library.h has it for GPUs. The functions of namespace host are torch's, bindings/host_library.cpp defines
// them; the rest is how they are called.
#pragma once

#include <stdint.h>

#include <cstddef>
#include <cstring>
#include <utility>

#include "kernels/denormals.h"
#include "kernels/matrix.h"

namespace charlm {

namespace host {

// Uninitialised memory, aligned to cache lines, never null; as many bytes, which may be more than 64 bits can count.
// Throws where there are not so many.
void* allocate(unsigned __int128 bytes);
void release(void* memory, size_t bytes);

// function(context, begin, end) over pieces of [0, count), each of at least `grain` items, on any threads. Throws the
// first error of one of them.
using Range = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t grain, Range function, const void* context);

// out = a b, and out += a b, on the thread that calls; none of them empty. All have one storage type.
void multiply(const Matrix& out, const Matrix& a, const Matrix& b);
void multiply_add(const Matrix& out, const Matrix& a, const Matrix& b);
// out = in, which may be stored in another type.
void copy(const Matrix& out, const Matrix& in);

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

// function(begin, end) over pieces of [0, count): one where there are no more than `grain` items.
template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  if (count <= grain) {
    if (count > 0) function(int64_t{0}, count);
    return;
  }
  const auto run = [](const void* context, int64_t begin, int64_t end) {
    (*static_cast<const Function*>(context))(begin, end);
  };
  host::parallel_for(count, grain, run, &function);
}

// The same over columns, cut at multiples of `group` columns; `grain` counts columns. Kernels work on whole vectors, so
// a bound inside one would have them reach into, or past, what is not theirs.
template <typename Function>
void parallel_for_columns(int64_t count, int64_t group, int64_t grain, const Function& function) {
  const int64_t groups = count / group + (count % group != 0);
  parallel_for(groups, 1 + grain / group,
               [&](int64_t first, int64_t last) { function(first * group, last < groups ? last * group : count); });
}
// Columns that are whole vectors of any instruction set, and whole cache lines.
inline constexpr int64_t kVectorColumns = 16;

}  // namespace charlm
