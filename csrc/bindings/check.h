// What every binding needs to turn tensors into plain pointers: argument errors, allocation, parallel loops.
//
// std::invalid_argument reaches Python as ValueError, std::out_of_range as IndexError.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/storage.h"

namespace charlm {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// check(condition, "weight must have shape ", ...): a ValueError unless the condition holds.
template <typename... Parts>
void check(bool condition, const Parts&... message) {
  if (!condition) [[unlikely]] {
    throw std::invalid_argument(concatenate(message...));
  }
}

// Parts of messages, formatted only when a check fails: "(200, 31)", "(5,)", "()", "float32" and "cuda:0".
struct ShapeString {
  torch::headeronly::IntHeaderOnlyArrayRef shape;
  explicit ShapeString(torch::headeronly::IntHeaderOnlyArrayRef shape) : shape(shape) {}
  explicit ShapeString(const Tensor& tensor) : shape(tensor.sizes()) {}
};
struct DtypeString {
  ScalarType type;
  explicit DtypeString(ScalarType type) : type(type) {}
};
std::ostream& operator<<(std::ostream& stream, const ShapeString& part);
struct DeviceString {
  Device device;
  explicit DeviceString(const Tensor& tensor) : device(tensor.device()) {}
  explicit DeviceString(const Device& device) : device(device) {}
};
std::ostream& operator<<(std::ostream& stream, const DtypeString& part);
std::ostream& operator<<(std::ostream& stream, const DeviceString& part);

// Throws where the storage has not the bytes that the tensor's elements need, as after `storage.resize_(0)`, by which
// FSDP frees parameters. Part of the checks below; for a tensor that none of them is about.
void check_memory(const char* name, const Tensor& tensor);
void check_floating(const char* name, const Tensor& tensor);
void check_integral(const char* name, const Tensor& tensor);
void check_on_cpu(const char* name, const Tensor& tensor);
void check_same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other);
// `tensor` has the dtype and the device of `other`.
void check_matches(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other);

struct NamedSize {
  const char* name;
  int64_t value;
};
// Throws unless there is room in 64 bits for the bytes of an array with all of these dimensions, each of them rounded
// up to a tile; a tensor expanded along a dimension may be of any size. Before anything is multiplied.
void check_sizes(std::initializer_list<NamedSize> sizes);
// The product of sizes, where it fits into 64 bits.
int64_t product(const char* name, torch::headeronly::IntHeaderOnlyArrayRef sizes);

// An option in the dtype that is computed in, in which it must neither become infinite nor, unless it is 0, as good as
// 0.
template <typename T>
bool fits(double value) {
  const double magnitude = value < 0 ? -value : value;
  return magnitude == 0 || (magnitude >= std::numeric_limits<T>::min() && magnitude <= std::numeric_limits<T>::max());
}
template <typename T>
T option_as(const char* name, double value);
// Of one less than 1, which it must still be.
template <typename T>
T fraction_as(const char* name, double value);

bool is_integral(ScalarType type);
Storage storage_of(const Tensor& tensor);
// The dtype kernels compute in: float64 for float64, float32 for everything else.
ScalarType compute_type(const Tensor& tensor);

inline const Device kCpu{torch::headeronly::DeviceType::CPU};

// Uninitialised, contiguous (or with the given strides). On the CPU large ones ask for huge pages, which halve the cost
// of touching fresh memory.
Tensor allocate_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType type,
                        const Device& device = kCpu);
Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType type, const Device& device = kCpu);
Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type, const Device& device = kCpu);
// The shape and the device of `tensor`, and its strides where these cover memory without gaps or overlaps.
Tensor allocate_like(const Tensor& tensor);

// `bytes` may be more than 64 bits hold.
[[noreturn]] void out_of_memory(unsigned __int128 bytes, const Device& device = kCpu);

// Uninitialised memory for the time of a call, aligned to cache lines; never null.
template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t count) : data_(static_cast<T*>(take(static_cast<unsigned __int128>(count) * sizeof(T)))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr size_t kAlignment = 64;
  static void* take(unsigned __int128 bytes) {
    void* memory = nullptr;
    const bool fits = bytes <= PTRDIFF_MAX;  // exactly so many bytes, or AddressSanitizer would not see one more
    if (!fits || posix_memalign(&memory, kAlignment, bytes > 0 ? static_cast<size_t>(bytes) : 1) != 0) {
      out_of_memory(bytes);
    }
    return memory;
  }
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

// memset and memcpy take no null pointer, which an empty tensor may have, not even for 0 bytes.
inline void fill_zero(void* data, int64_t bytes) {
  if (bytes > 0) std::memset(data, 0, static_cast<size_t>(bytes));
}
inline void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// `tensor` as a contiguous tensor of the given dtype; itself where it is one.
Tensor contiguous_as(const Tensor& tensor, ScalarType type);
inline Tensor as_contiguous(const Tensor& tensor) { return contiguous_as(tensor, tensor.scalar_type()); }
Tensor zeros(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type, const Device& device);

// function(begin, end) over [0, count) on torch's threads; at least `grain` items per call. An error of one of them,
// the first, is the caller's; torch's own would say no more than that there was one.
template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  if (count <= grain) {
    if (count > 0) function(int64_t{0}, count);
    return;
  }
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      function(begin, end);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
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

// Calls function(T{}) with the compute type.
template <typename Function>
void dispatch_compute_type(const Tensor& tensor, const Function& function) {
  if (compute_type(tensor) == ScalarType::Double) {
    function(double{});
  } else {
    function(float{});
  }
}

// Remembers which way a binding went, "<op>/<branch>"; the tests ask, to show that every branch is reached.
void took_branch(const char* name);
const char* last_branch();

}  // namespace charlm
