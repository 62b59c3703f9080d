// What every binding needs to turn tensors into plain pointers: argument errors, allocation, parallel loops.
//
// std::invalid_argument reaches Python as ValueError, std::out_of_range as IndexError.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <new>
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
};
std::ostream& operator<<(std::ostream& stream, const DtypeString& part);
std::ostream& operator<<(std::ostream& stream, const DeviceString& part);

void check_floating(const char* name, const Tensor& tensor);
void check_integral(const char* name, const Tensor& tensor);
void check_on_cpu(const char* name, const Tensor& tensor);
void check_same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other);
// `tensor` has the dtype and the device of `other`.
void check_matches(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other);

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

// Uninitialised memory for the time of a call, aligned to cache lines.
template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlignment))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Delete> data_;
};

// `tensor` as a contiguous tensor of the given dtype; itself where it is one.
Tensor contiguous_as(const Tensor& tensor, ScalarType type);

// function(begin, end) over [0, count) on torch's threads; at least `grain` items per call.
template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& function) {
  if (count <= grain) {
    if (count > 0) function(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, function);
}

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
