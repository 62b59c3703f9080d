// The functions of kernels/cpu/math.h on arrays of whole vectors, for tests/test_cpu_math.py.
#include "kernels/cpu/math.h"

using namespace charlm::cpu::CHARLM_ISA_NAMESPACE;

#define CHARLM_EXPORT(function, T)                                                                 \
  extern "C" void function##_##T(const T* in, T* out, int64_t count) {                             \
    for (int64_t i = 0; i < count; i += kWidth<T>) store(out + i, Vec<T>(function(load(in + i)))); \
  }
#define CHARLM_EXPORT_BOTH(function) CHARLM_EXPORT(function, float) CHARLM_EXPORT(function, double)

CHARLM_EXPORT_BOTH(exp_in_range)
CHARLM_EXPORT_BOTH(exp)
CHARLM_EXPORT_BOTH(log)
CHARLM_EXPORT_BOTH(tanh)
CHARLM_EXPORT_BOTH(erf)

extern "C" void divide_float(const float* a, const float* b, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth<float>) store(out + i, divide(load(a + i), load(b + i)));
}

extern "C" bool is_supported() { return charlm::cpu::machine_supports(charlm::cpu::InstructionSet::CHARLM_ISA); }
