#include "bindings/mlp_cross_entropy_arguments.h"

namespace charlm {

MlpArguments read_mlp_arguments(const Tensor& ids, const Tensor& target, const Tensor& embedding, const Tensor& weight1,
                                const OptionalTensor& bias1, const Tensor& weight2, const OptionalTensor& bias2,
                                int64_t reduction, double softcap, ScalarType type) {
  const auto options = cross_entropy_options(-100, reduction, 0, softcap, 0);
  check(ids.dim() >= 1 && ids.size(ids.dim() - 1) > 0, "ids must have shape (..., T), got ", ShapeString(ids));
  bool matches = target.dim() == ids.dim() - 1;
  for (int64_t d = 0; matches && d < target.dim(); ++d) matches = target.size(d) == ids.size(d);
  check(matches, "target must have the shape of ids without its last dimension, ",
        ShapeString(torch::headeronly::IntHeaderOnlyArrayRef(ids.sizes().data(), ids.dim() - 1)), ", got ",
        ShapeString(target));
  check_floating("embedding", embedding);
  check(embedding.dim() == 2 && embedding.numel() > 0, "embedding must have shape (V, D), got ",
        ShapeString(embedding));
  check(weight1.dim() == 2 && weight1.size(0) > 0, "weight1 must have shape (H, T*D), got ", ShapeString(weight1));
  MlpArguments arguments{{embedding.size(0), ids.size(ids.dim() - 1), embedding.size(1), weight1.size(0), false},
                         {},
                         target.numel(),
                         options.reduction,
                         softcap};
  const ModelShape& shape = arguments.shape;
  const auto add = [&](int i, const Tensor& tensor, std::initializer_list<int64_t> expected, const char* meaning) {
    check_matches(kMlpNames[i], tensor, "embedding", embedding);
    bool fits = tensor.dim() == static_cast<int64_t>(expected.size());
    for (size_t d = 0; fits && d < expected.size(); ++d) fits = tensor.size(d) == expected.begin()[d];
    check(fits, kMlpNames[i], " must have shape ", meaning, " = ",
          ShapeString(torch::headeronly::IntHeaderOnlyArrayRef(expected.begin(), expected.size())), ", got ",
          ShapeString(tensor));
    arguments.parameters.push_back(contiguous_as(tensor, type));
  };
  const auto zeros = [&](int64_t size) { return torch::stable::new_zeros(embedding, {size}); };
  add(0, embedding, {shape.vocab_size, shape.embedding_dim}, "(V, D)");
  add(1, weight1, {shape.hidden_dim, shape.context_length * shape.embedding_dim}, "(H, T*D)");
  add(2, bias1.has_value() ? *bias1 : zeros(shape.hidden_dim), {shape.hidden_dim}, "(H,)");
  add(3, weight2, {shape.vocab_size, shape.hidden_dim}, "(V, H)");
  add(4, bias2.has_value() ? *bias2 : zeros(shape.vocab_size), {shape.vocab_size}, "(V,)");
  return arguments;
}

}  // namespace charlm
