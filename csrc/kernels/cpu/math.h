// exp, log, tanh, erf and their relatives on vectors.
//
// float: polynomials and rationals. Each says how many units in the last place of the true result (ulp) it may be off
// on any instruction set; tests/test_cpu_math.py holds it to that. A NaN gives a NaN, but for exp_in_range.
//
// double: the C library lane by lane. It serves gradcheck and float64 references, where its last bit matters and speed
// does not.
#pragma once

#include <math.h>

#include "kernels/cpu/vec.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <double (*function)(double)>
CHARLM_INLINE Vec<double> by_lane(Vec<double> x) {
  for (int lane = 0; lane < kWidth<double>; ++lane) x[lane] = function(x[lane]);
  return x;
}

// e^x for -87 <= x <= 88, within 1.1 ulp; garbage elsewhere. Cody-Waite reduction x = n ln 2 + r, |r| <= ln 2 / 2, a
// polynomial of degree 7 for e^r, and n added to the exponent bits.
CHARLM_INLINE Vec<float> exp_in_range(Vec<float> x) {
  const Vec<float> shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = x * 1.44269504088896341f + shifter;
  const Vec<float> n = shifted - shifter;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return (Vec<float>)((IntVec<float>)p + ((IntVec<float>)shifted << 23));
}
CHARLM_INLINE Vec<double> exp_in_range(Vec<double> x) { return by_lane<::exp>(x); }

// e^x, within 1.1 ulp. Results below the smallest normal number are 0, as denormals would slow every product that
// follows; those above 2^127.5 are infinite, as there n is 128, which has no exponent bits.
CHARLM_INLINE Vec<float> exp(Vec<float> x) {
  const Vec<float> result = x < -87.33654f ? Vec<float>{} : exp_in_range(x);
  return x <= 88.37626f ? result : x + (float)INFINITY;
}
CHARLM_INLINE Vec<double> exp(Vec<double> x) { return by_lane<::exp>(x); }

// ln x for x >= 0, within 0.9 ulp (Cephes logf): x = 2^n m, sqrt(1/2) <= m < sqrt(2). Zero and denormals give -inf.
CHARLM_INLINE Vec<float> log(Vec<float> x) {
  const IntVec<float> bits = (IntVec<float>)x;
  // Subtracting the bits of sqrt(1/2) leaves n in the exponent field with m in the wanted interval.
  const IntVec<float> offset = bits - 0x3f3504f3;
  const Vec<float> n = __builtin_convertvector(offset >> 23, Vec<float>);
  const Vec<float> m = (Vec<float>)((offset & 0x007fffff) + 0x3f3504f3) - 1.0f;
  Vec<float> p = broadcast(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Vec<float> m2 = m * m;
  Vec<float> result = p * m * m2 - n * 2.12194440e-4f - 0.5f * m2 + m + n * 0.693359375f;
  result = x < 1.17549435e-38f ? broadcast(-(float)INFINITY) : result;
  return (x > 3.4028235e38f) | (x != x) ? x : result;
}
CHARLM_INLINE Vec<double> log(Vec<double> x) { return by_lane<::log>(x); }

// a / b within 2.5 ulp, for 2^-126 <= |b| <= 2^126. AVX-512 divides 16 floats in 16 cycles, in which it could multiply
// 32 times: one Newton step r (2 - b r) takes the 14 bits of an estimate of 1 / b to what float has, but for rounding.
CHARLM_INLINE Vec<float> divide(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  const Vec<float> estimate = (Vec<float>)_mm512_rcp14_ps((__m512)b);
  return a * (estimate * (2.0f - b * estimate));
#else
  return a / b;
#endif
}

// Exactly -1 and 1 beyond the limit, so that derivatives like 1 - tanh^2 vanish there; `value` within, and for NaN.
CHARLM_INLINE Vec<float> saturate(Vec<float> x, float limit, Vec<float> value) {
  value = x > limit ? broadcast(1.0f) : value;
  return x < -limit ? broadcast(-1.0f) : value;
}

// tanh x within 6.5 ulp: an odd rational 9/8, minimax in the relative error (7e-9) on |x| < 8; what remains is the
// rounding of its evaluation, 0.6 ulp on average. At 8, 1 is 4 ulp off.
CHARLM_INLINE Vec<float> tanh(Vec<float> x) {
  const Vec<float> x2 = x * x;
  Vec<float> p = broadcast(1.5231439446743202e-8f);
  p = p * x2 + 2.1895503911928023e-5f;
  p = p * x2 + 3.5716532910992807e-3f;
  p = p * x2 + 0.13444545832514052f;
  p = p * x2 + 0.999999993703975f;
  Vec<float> q = broadcast(8.522896712623822e-7f);
  q = q * x2 + 3.4113795793182681e-4f;
  q = q * x2 + 2.6164657282642518e-2f;
  q = q * x2 + 0.46777873217515f;
  q = q * x2 + 1.0f;
  return saturate(x, 8.0f, divide(p * x, q));
}
CHARLM_INLINE Vec<double> tanh(Vec<double> x) { return by_lane<::tanh>(x); }

// erf x within 8 ulp: an odd rational 9/12 on |x| < 3.83, 0.7 ulp off on average; saturated outside (there 1 - erf is
// below 2^-23).
CHARLM_INLINE Vec<float> erf(Vec<float> x) {
  const Vec<float> y2 = x * x;
  Vec<float> a = broadcast(0.00022905065861350646f);
  a = a * y2 + 0.0034082910107109506f;
  a = a * y2 + 0.050955695062380861f;
  a = a * y2 + 0.18520832239976145f;
  a = a * y2 + 1.128379143519084f;
  Vec<float> b = broadcast(-1.1791602954361697e-7f);
  b = b * y2 + 0.000023547966471313185f;
  b = b * y2 + 0.0010179625278914885f;
  b = b * y2 + 0.014070470171167667f;
  b = b * y2 + 0.11098505178285362f;
  b = b * y2 + 0.49746925110067538f;
  b = b * y2 + 1.0f;
  return saturate(x, 3.832506856900711f, divide(x * a, b));
}
CHARLM_INLINE Vec<double> erf(Vec<double> x) { return by_lane<::erf>(x); }

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
