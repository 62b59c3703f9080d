// Divisions of many numbers by one that a launch knows.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace charlm::cuda {

// A division of 64 bits takes a GPU some hundred instructions, and a call; this takes a dozen.
struct Divisor {
  int64_t divisor;
  uint64_t reciprocal;  // 2^63 / divisor, rounded up

  // 0, of a size of zero, divides nothing.
  explicit Divisor(int64_t divisor)
      : divisor(divisor), reciprocal(static_cast<uint64_t>(INT64_MAX / (divisor > 0 ? divisor : 1)) + 1) {}

  // Of a number that is not negative, and that times the divisor is below 2^63: what was rounded up adds up to less
  // than 1 / divisor.
  __device__ int64_t quotient(int64_t number) const {
    return static_cast<int64_t>(__umul64hi(2 * static_cast<uint64_t>(number), reciprocal));
  }
  // Of any number that is not negative.
  __device__ int64_t divide(int64_t number, int64_t* remainder) const {
    int64_t result = quotient(number);
    *remainder = number - result * divisor;
    if (*remainder < 0) {
      --result;
      *remainder += divisor;
    }
    return result;
  }
};

}  // namespace charlm::cuda
