// A call of an op's launchers, as simulator.py sends it: numbers and buffers by name.
#pragma once

#include <stdint.h>

#include <map>
#include <string>

#include "kernels/cross_entropy.h"
#include "kernels/storage.h"
#include "kernels/token_index.h"
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
  charlm::TokenIds token_ids() const;
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

// What the ops with a loss have in common: the problem but for its input, that input's gradient and the scale.
template <typename T>
charlm::CrossEntropy<T> read_loss(const Call& call) {
  charlm::CrossEntropy<T> loss;
  loss.rows = call.integer("rows");
  loss.classes = call.integer("classes");
  loss.target = call.buffer<int64_t>("target");
  loss.ignore_index = call.integer("ignore_index");
  loss.probabilities = call.class_matrix("probabilities");
  loss.probabilities_gradient = call.class_matrix("probabilities_gradient");
  loss.weight = call.buffer<T>("class_weight");
  loss.label_smoothing = static_cast<T>(call.real("label_smoothing"));
  loss.softcap = static_cast<T>(call.real("softcap"));
  loss.z_loss = static_cast<T>(call.real("z_loss"));
  loss.shift = call.buffer<T>("lse");
  loss.log_sum = loss.shift + loss.rows;
  loss.lse_is_known = call.integer("lse_is_known") != 0;
  loss.row_scale = call.buffer<T>("row_scale");
  return loss;
}

// An op registers what runs its launchers: `static const Op op("cross_entropy", run);`.
struct Op {
  Op(const char* name, int (*run)(const Call&));
};

}  // namespace simulator
