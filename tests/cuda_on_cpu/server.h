// A call of an op's launchers, as simulator.py sends it: numbers and buffers by name.
#pragma once

#include <stdint.h>

#include <map>
#include <string>

#include "kernels/storage.h"
#include "simulator.h"

namespace simulator {

class Call {
 public:
  int64_t integer(const char* name) const { return integers_.at(name); }
  double real(const char* name) const { return reals_.at(name); }
  // The buffer of that name; null where none was sent.
  template <typename T>
  T* buffer(const char* name) const {
    const auto found = buffers_.find(name);
    return found == buffers_.end() ? nullptr : static_cast<T*>(found->second.data);
  }
  // The matrix whose members were sent as <name> and <name>.inner, ....
  charlm::ClassMatrix class_matrix(const std::string& name) const;
  charlm::Storage storage() const { return static_cast<charlm::Storage>(integer("storage")); }

  // False at the end of the input.
  bool read();
  void answer(int error) const;

  std::string op;

 private:
  struct Buffer {
    void* data;
    int64_t bytes;
    bool is_output;
  };
  std::map<std::string, int64_t> integers_;
  std::map<std::string, double> reals_;
  std::map<std::string, Buffer> buffers_;
};

// Memory of the device for the time of a call, which nothing has written yet.
template <typename T>
T* workspace(int64_t values) {
  return static_cast<T*>(allocate(static_cast<size_t>(values) * sizeof(T), 0, false));
}

// An op registers what runs its launchers: `static const Op op("cross_entropy", run);`.
struct Op {
  Op(const char* name, int (*run)(const Call&));
};

}  // namespace simulator
