// The CPU's ops on layers as functions, for an op that is made of them. Arguments and results: see schemas.cpp.
#pragma once

#include <tuple>

#include "bindings/tensors.h"

namespace charlm {

std::tuple<Tensor, Tensor> embedding_linear_forward(const Tensor ids, const Tensor embedding, const Tensor weight,
                                                    const OptionalTensor bias, int64_t activation, bool keeps_rows);
std::tuple<Tensor, Tensor, Tensor> embedding_linear_backward(const Tensor grad_output, const Tensor output,
                                                             const Tensor ids, const Tensor rows, const Tensor weight,
                                                             const OptionalTensor bias, int64_t activation,
                                                             int64_t vocab_size, bool wants_embedding,
                                                             bool wants_weight, bool wants_bias);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_forward(
    const Tensor input, const Tensor linear_weight, const Tensor target, const OptionalTensor linear_bias,
    const OptionalTensor weight, const OptionalTensor token_weights, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool input_gradient, bool weight_gradient,
    bool bias_gradient);

}  // namespace charlm
