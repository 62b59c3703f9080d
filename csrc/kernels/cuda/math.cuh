// exp, log and tanh of the types kernels compute in, and numbers that stand for nothing.
#pragma once

#include <cuda_runtime.h>
#include <float.h>
#include <math.h>

namespace charlm::cuda {

// 2^x and 1 / x, in one instruction each; results below 2^-126 are 0.
__device__ inline float approximate_exp2(float x) {
#if defined(__CUDACC__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}
__device__ inline float approximate_reciprocal(float x) {
#if defined(__CUDACC__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}

// A product that no fused addition takes up.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// e^(z - shift) for many z, as 2^(z s - shift s) with s = log2(e): two instructions each in float32. The product
// shift s is rounded, and that is the same factor for all z: what they add up to is to be multiplied by `correction`.
//
// From 2^30 on numbers are so far apart that e^(z - shift) is 1 or as good as 0. There s is 1, and nothing is rounded.
template <typename T>
struct Exponential {
  float s, shift_s;

  __device__ explicit Exponential(float shift)
      : s(fabsf(shift) < 0x1p30f ? 1.4426950408889634f : 1.0f), shift_s(rounded_product(shift, s)) {}
  __device__ float operator()(float z) const { return approximate_exp2(fmaf(z, s, -shift_s)); }
  // What sums of exponentials under another shift, a smaller one, are multiplied by to be under this one.
  __device__ float from(const Exponential& other) const {
    return s == other.s ? approximate_exp2(other.shift_s - shift_s) : 0.0f;
  }
  __device__ float correction(float shift) const { return approximate_exp2(-fmaf(shift, s, -shift_s)); }
};
template <>
struct Exponential<double> {
  double shift;

  __device__ explicit Exponential(double shift) : shift(shift) {}
  __device__ double operator()(double z) const { return exp(z - shift); }
  __device__ double from(const Exponential& other) const { return exp(other.shift - shift); }
  __device__ double correction(double) const { return 1; }
};

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
__device__ inline float smaller(float a, float b) { return fminf(a, b); }
__device__ inline double smaller(double a, double b) { return fmin(a, b); }

// tanh without a branch, in half the instructions of tanhf, for a result that is kept as an S. The relative error of a
// float is below 2^-21.5, 3.4 units in the last place, by the documented errors of the two instructions above; where
// these round correctly, below 2^-22.3, 1.9 units. That of tanhf is 2 units. 1 - 2 / (e^2x + 1) loses digits where x is
// small: there it is the polynomial of least relative error. For 16 bits an error of 2^-14.8 will do: there it is x.
template <typename S>
__device__ inline float fast_tanh(float x) {
  constexpr bool kIsPrecise = sizeof(S) == sizeof(float);
  constexpr float kSmall = kIsPrecise ? 0.6f : 0x1p-7f;
  float small = x;
  if constexpr (kIsPrecise) {
    const float square = x * x;
    float sum = 1.5612626448273659e-2f;
    sum = sum * square - 5.221180245280266e-2f;
    sum = sum * square + 1.3313116133213043e-1f;
    sum = sum * square - 3.3332598209381104e-1f;
    small = x + x * (square * sum);
  }
  const float power = approximate_exp2(fabsf(x) * 2.8853900817779268f);  // e^2|x|
  const float large = copysignf(fmaf(approximate_reciprocal(power + 1), -2, 1), x);
  return fabsf(x) < kSmall ? small : large;
}
template <typename S>
__device__ inline double fast_tanh(double x) {
  return tanh(x);
}

}  // namespace charlm::cuda
