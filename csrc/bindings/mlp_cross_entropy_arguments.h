// The arguments of mlp_cross_entropy, checked: what its bindings for the CPU and for CUDA share.
#pragma once

#include "bindings/cross_entropy_options.h"
#include "kernels/models.h"

namespace charlm {

inline constexpr int kMlpParameters = 5;
inline constexpr const char* kMlpNames[kMlpParameters] = {"embedding", "weight1", "bias1", "weight2", "bias2"};

// Checked; the parameters contiguous in one dtype, zeros for a missing bias. A size of 0 is computed as one of 1, with
// zeros as parameters: contexts of one token for those of none.
struct MlpArguments {
  ModelShape shape;
  std::vector<Tensor> parameters;
  std::vector<std::vector<int64_t>> sizes;  // as the parameters came
  Tensor ids;                               // (..., T)
  int64_t examples;
  int64_t ignore_index;
  Reduction reduction;
  double softcap;
};

// Everything but the values of ids and targets is checked. The parameters are converted to `type`.
MlpArguments read_mlp_arguments(const Tensor& ids, const Tensor& target, const Tensor& embedding, const Tensor& weight1,
                                const OptionalTensor& bias1, const Tensor& weight2, const OptionalTensor& bias2,
                                int64_t ignore_index, int64_t reduction, double softcap, ScalarType type);

// grad_output has an element for each example, or for the reductions to one number a single one.
void check_mlp_upstream(const MlpArguments& arguments, const Tensor& grad_output, const Tensor& embedding);

// The gradient of parameter i as the caller gets it, from that of the one computed with.
Tensor mlp_gradient(const MlpArguments& arguments, int i, const Tensor& gradient, ScalarType type);

}  // namespace charlm
