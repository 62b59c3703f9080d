#include "bindings/architectures.h"

namespace charlm {

const char* cuda_architectures() { return CHARLM_CUDA_ARCHITECTURES; }

}  // namespace charlm
