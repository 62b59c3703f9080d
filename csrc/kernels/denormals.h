// Denormal numbers cost a hundred cycles each, and late in training small gradients and their moments are full of them.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "kernels/isa.h"

namespace charlm {

// For as long as it lives, its thread takes denormal operands for 0 and rounds denormal results to 0.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  CHARLM_SHARED_INLINE FlushDenormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero);
  }
  CHARLM_SHARED_INLINE ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  unsigned saved_;
#elif defined(__aarch64__)
  CHARLM_SHARED_INLINE FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_ | kFlushToZero));
  }
  CHARLM_SHARED_INLINE ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  static constexpr uint64_t kFlushToZero = 1 << 24;
  uint64_t saved_;
#else
  CHARLM_SHARED_INLINE FlushDenormals() {}
  CHARLM_SHARED_INLINE ~FlushDenormals() {}
#endif
 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace charlm
