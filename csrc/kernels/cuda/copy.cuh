// Arrays cleared, converted and transposed.
#pragma once

#include <type_traits>

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.cuh"
#include "kernels/device_library.h"

namespace charlm::cuda {
namespace {

inline constexpr int kCopyThreads = 256;
inline constexpr int kCopyAhead = 4;  // values of a thread whose loads are under way at the same time

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

inline int64_t copy_blocks(int64_t count) {
  return (count + kCopyThreads * kCopyAhead - 1) / (kCopyThreads * kCopyAhead);
}

// to[place(i)] = from[i], from one type to another.
template <typename From, typename To, typename Place>
__device__ inline void copy_values(const From* from, int64_t count, To* to, const Place& place) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCopyThreads * kCopyAhead + threadIdx.x;
  Compute<From> values[kCopyAhead];
#pragma unroll
  for (int k = 0; k < kCopyAhead; ++k) {
    const int64_t i = first + k * kCopyThreads;
    values[k] = to_compute(from[i < count ? i : count - 1]);
  }
#pragma unroll
  for (int k = 0; k < kCopyAhead; ++k) {
    const int64_t i = first + k * kCopyThreads;
    if (i < count) to[place(i)] = to_storage<To>(values[k]);
  }
}

template <typename From, typename To>
__global__ void __launch_bounds__(kCopyThreads) convert_values(const From* from, int64_t count, To* to) {
  copy_values(from, count, to, [](int64_t i) { return i; });
}

template <typename From, typename To>
Error convert(const From* from, int64_t count, To* to, Stream stream) {
  return launch(convert_values<From, To>, copy_blocks(count), dim3(kCopyThreads), 0, stream, from, count, to);
}

// (outer, middle, inner) to (middle, outer, inner) and from one type to another: the weight, position by position.
template <typename From, typename To>
__global__ void __launch_bounds__(kCopyThreads)
    swap_dimensions(const From* from, int64_t outer, const Divisor middle, const Divisor inner, To* to) {
  copy_values(from, outer * middle.divisor * inner.divisor, to, [&](int64_t i) {
    int64_t in, mid;
    const int64_t out = middle.divide(inner.divide(i, &in), &mid);
    return (mid * outer + out) * inner.divisor + in;
  });
}

template <typename From, typename To>
Error swap_outer(const From* from, int64_t outer, int64_t middle, int64_t inner, To* to, Stream stream) {
  return launch(swap_dimensions<From, To>, copy_blocks(outer * middle * inner), dim3(kCopyThreads), 0, stream, from,
                outer, Divisor(middle), Divisor(inner), to);
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
