// exp, log and tanh of the types kernels compute in, and numbers that stand for nothing.
#pragma once

#include <cuda_runtime.h>
#include <float.h>
#include <math.h>

namespace charlm::cuda {

// For every element. In float32 its absolute error is below 2^-22 where x <= 0, in two instructions: __expf's, but for
// its care for results below 2^-126, which takes as many again.
__device__ inline float fast_exp(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
#else
  return exp(x);
#endif
}
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

// Of a NaN and a number, the number.
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger(double a, double b) { return fmax(a, b); }

}  // namespace charlm::cuda
