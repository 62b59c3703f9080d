// Products of matrices on the CPU, of any strides and any storage, summed in the type that is computed in.
//
//   out (M, N) = a (M, K) b (K, N)     or     out += a b
//
// Every element is summed in order of the inner dimension, so that its bits depend neither on the number of threads nor
// on how a caller cuts M and N. Values in half precision are widened on the way into registers. Where the processor
// multiplies bfloat16 (AVX512_BF16, AMX), a product with a factor in bfloat16 has both in it, and sums in float32.
#pragma once

#include <stdint.h>

#include "kernels/isa.h"
#include "kernels/matrix.h"

namespace charlm::cpu {

template <typename T>
struct ProductKernels {
  // On the thread that calls. out is of T, its rows contiguous; nothing is empty but, perhaps, the inner dimension.
  int64_t (*scratch_bytes)(const Matrix& a, const Matrix& b);
  void (*multiply)(const Matrix& out, const Matrix& a, const Matrix& b, bool accumulate, void* scratch);
  void (*store)(const T* values, int64_t count, void* to, Storage storage);
};
CHARLM_DECLARE_KERNELS(ProductKernels<float>)
CHARLM_DECLARE_KERNELS(ProductKernels<double>)
CHARLM_DECLARE_NARROW_KERNELS(ProductKernels<float>)
CHARLM_DECLARE_NARROW_KERNELS(ProductKernels<double>)

enum class Write { kSet, kAdd };

// out = a b, or out += a b, on all threads. Of a product with `outputs` elements, out is a part, which is to have the
// bits that it has there: tiny products are computed with other instructions than large ones. 0: out is all of it.
template <typename T>
void multiply(Write write, const Matrix& out, const Matrix& a, const Matrix& b, int64_t outputs = 0);

// What has been computed, as it is to be stored; on all threads.
template <typename T>
void store(const T* values, int64_t count, void* to, Storage storage);

}  // namespace charlm::cpu
