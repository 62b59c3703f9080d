// Arrays cleared, converted and transposed.
#pragma once

#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.cuh"
#include "kernels/device_library.h"

namespace charlm::cuda {
namespace {

inline constexpr int kCopyThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kCopyThreads) clear_values(T* values, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i < count) values[i] = to_storage<T>(Compute<T>(0));
}

template <typename T>
Error clear(T* values, int64_t count, Stream stream) {
  return launch(clear_values<T>, (count + kCopyThreads - 1) / kCopyThreads, dim3(kCopyThreads), 0, stream, values,
                count);
}

// (outer, middle, inner) to (middle, outer, inner) and from one type to another: the weight, position by position; with
// middle = 1, a conversion.
template <typename From, typename To>
__global__ void __launch_bounds__(kCopyThreads)
    swap_dimensions(const From* from, int64_t outer, int64_t middle, int64_t inner, To* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i >= outer * middle * inner) return;
  const int64_t pair = i / inner;
  to[(pair % middle * outer + pair / middle) * inner + i % inner] = to_storage<To>(to_compute(from[i]));
}

template <typename From, typename To>
Error swap_outer(const From* from, int64_t outer, int64_t middle, int64_t inner, To* to, Stream stream) {
  return launch(swap_dimensions<From, To>, (outer * middle * inner + kCopyThreads - 1) / kCopyThreads,
                dim3(kCopyThreads), 0, stream, from, outer, middle, inner, to);
}

template <typename From, typename To>
Error convert(const From* from, int64_t count, To* to, Stream stream) {
  return swap_outer(from, 1, 1, count, to, stream);
}

// `from` in the type that is computed in: itself, or a converted copy.
template <typename S>
Error as_computed(const S* from, int64_t count, const Compute<S>** computed, DeviceLibrary& library, Stream stream) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    *computed = from;
    return cudaSuccess;
  } else {
    Compute<S>* copy = library.allocate_values<Compute<S>>(count);
    *computed = copy;
    return convert(from, count, copy, stream);
  }
}

// Where to compute `result`: in its place, or beside it where it is stored in a smaller type. store_computed brings it
// home.
template <typename S>
Compute<S>* computed_place(S* result, int64_t count, DeviceLibrary& library) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return result;
  } else {
    return library.allocate_values<Compute<S>>(count);
  }
}
template <typename S>
Error store_computed(const Compute<S>* computed, int64_t count, S* result, Stream stream) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    return cudaSuccess;
  } else {
    return convert(computed, count, result, stream);
  }
}

}  // namespace
}  // namespace charlm::cuda
