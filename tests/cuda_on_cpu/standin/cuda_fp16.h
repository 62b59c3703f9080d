// Stands in for CUDA's header of this name.
#pragma once

#include <cuda_runtime.h>

struct __half {
  _Float16 value;
};

inline float __half2float(__half half) { return static_cast<float>(half.value); }
inline __half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }

struct __half2 {
  __half x, y;
};
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

// Of a NaN and a number, the number.
inline __half __hmax(__half a, __half b) { return __float2half_rn(std::fmax(__half2float(a), __half2float(b))); }
inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
