// The kernels of kernels/product.h as C functions, for tests/test_cpu_product.py.
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/product.cpp"

using namespace charlm;
using namespace charlm::cpu;

namespace {

struct Operand {  // as tests/test_cpu_product.py has it
  void* data;
  int64_t storage, rows, columns, row_stride, column_stride;

  Matrix matrix() const { return {data, static_cast<Storage>(storage), rows, columns, row_stride, column_stride}; }
};

template <typename T>
void multiply_with(const Operand* out, const Operand* a, const Operand* b, bool accumulate) {
  const auto kernels = CHARLM_ISA_NAMESPACE::kernels<ProductKernels<T>>();
  const int64_t bytes = (kernels.scratch_bytes(a->matrix(), b->matrix()) + 63) / 64 * 64;
  void* scratch = std::aligned_alloc(64, bytes);
  std::memset(scratch, 0xff, bytes);  // NaN, of which none may be read before it is overwritten
  kernels.multiply(out->matrix(), a->matrix(), b->matrix(), accumulate, scratch);
  std::free(scratch);
}

}  // namespace

extern "C" void multiply_float(const Operand* out, const Operand* a, const Operand* b, bool accumulate) {
  multiply_with<float>(out, a, b, accumulate);
}
extern "C" void multiply_double(const Operand* out, const Operand* a, const Operand* b, bool accumulate) {
  multiply_with<double>(out, a, b, accumulate);
}
extern "C" bool has_pairs() { return CHARLM_HAS_PAIRS; }
extern "C" bool has_tiles() { return CHARLM_HAS_TILES; }
extern "C" bool is_supported() { return machine_supports(InstructionSet::CHARLM_ISA); }
