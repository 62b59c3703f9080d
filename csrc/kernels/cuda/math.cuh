// exp, log and tanh of the types kernels compute in, and numbers that stand for nothing.
#pragma once

#include <cuda_runtime.h>
#include <float.h>
#include <math.h>

namespace charlm::cuda {

// For every element. In float32 its absolute error is below 2^-22 where x <= 0, in two instructions.
__device__ inline float fast_exp(float x) { return __expf(x); }
__device__ inline double fast_exp(double x) { return exp(x); }

template <typename T>
inline constexpr T kLowest = static_cast<T>(-FLT_MAX);
template <>
inline constexpr double kLowest<double> = -DBL_MAX;

template <typename T>
__device__ inline T not_a_number() {
  return static_cast<T>(NAN);
}

template <typename T>
__device__ inline bool is_finite(T x) {
  return x - x == 0;
}

template <typename T>
__device__ inline T larger(T a, T b) {  // of a NaN and a number, the number
  return a < b ? b : a;
}

}  // namespace charlm::cuda
