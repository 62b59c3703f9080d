// How kernels run parts of their work on several threads without knowing whose threads these are.
#pragma once

#include <stdint.h>

namespace charlm {

struct Parallel {
  using Body = void (*)(const void* context, int64_t index);
  // Calls body(context, i) for every i in [0, count), in any order, on any threads; null: one after the other.
  void (*run)(int64_t count, Body body, const void* context) = nullptr;

  template <typename Function>
  void operator()(int64_t count, const Function& function) const {
    if (run == nullptr || count <= 1) {
      for (int64_t i = 0; i < count; ++i) function(i);
    } else {
      run(count, [](const void* context, int64_t i) { (*static_cast<const Function*>(context))(i); }, &function);
    }
  }
};

}  // namespace charlm
