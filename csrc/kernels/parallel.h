// How kernels run parts of their work on several threads. bindings/host_library.cpp defines host::parallel_for, with
// torch's threads.
#pragma once

#include <stdint.h>

#include "kernels/denormals.h"
#include "kernels/isa.h"

namespace charlm {

namespace host {

// function(context, begin, end) over pieces of [0, count), each of at least `grain` items, on any threads. Throws the
// first error of one of them.
using Range = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for(int64_t count, int64_t grain, Range function, const void* context);
// The most of them that there are.
int64_t threads();

}  // namespace host

// function(begin, end) over pieces of [0, count): one where there are no more than `grain` items.
template <typename Function>
CHARLM_SHARED_INLINE void parallel_for(int64_t count, int64_t grain, const Function& function) {
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
CHARLM_SHARED_INLINE void parallel_for_columns(int64_t count, int64_t group, int64_t grain, const Function& function) {
  const int64_t groups = count / group + (count % group != 0);
  parallel_for(groups, 1 + grain / group,
               [&](int64_t first, int64_t last) { function(first * group, last < groups ? last * group : count); });
}
// Columns that are whole vectors of any instruction set, and whole cache lines.
inline constexpr int64_t kVectorColumns = 16;

// function(i) for every i in [0, count), in any order; where there are several, each with denormals flushed.
template <typename Function>
CHARLM_SHARED_INLINE void for_each(int64_t count, const Function& function) {
  if (count <= 1) {
    if (count == 1) function(int64_t{0});
    return;
  }
  const auto run = [](const void* context, int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < end; ++i) (*static_cast<const Function*>(context))(i);
  };
  host::parallel_for(count, 1, run, &function);
}

}  // namespace charlm
