// The part of DLPack 1.3 that reads a tensor of Python without owning it, in the ABI that it publishes:
// https://dmlc.github.io/dlpack/latest/c_api.html. Torch's copy of that header is closed to its stable interface.
#pragma once

#include <cstdint>

namespace charlm::dlpack {

inline constexpr uint32_t kMajorVersion = 1;
inline constexpr const char* kExchangeName = "dlpack_exchange_api";  // of the capsule
inline constexpr const char* kExchangeAttribute = "__dlpack_c_exchange_api__";

struct Device {
  int32_t type;
  int32_t index;
};
inline constexpr int32_t kCpu = 1;

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
enum Code : uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4 };

struct TensorView {
  void* data;
  Device device;
  int32_t dims;
  DataType type;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Exchange {
  struct {
    uint32_t major, minor;
  } version;
  Exchange* previous;
  void* allocate;
  void* own_from_python;
  void* to_python;
  int (*view_from_python)(void* object, TensorView* view);  // 0, or -1 with a Python error set
  void* current_stream;
};

}  // namespace charlm::dlpack
