#include "bindings/mlp_cross_entropy_arguments.h"

namespace charlm {

MlpArguments read_mlp_arguments(const Tensor& ids, const Tensor& target, const Tensor& embedding, const Tensor& weight1,
                                const OptionalTensor& bias1, const Tensor& weight2, const OptionalTensor& bias2,
                                int64_t ignore_index, int64_t reduction, double softcap, ScalarType type) {
  const auto options = cross_entropy_options(ignore_index, reduction, 0, softcap, 0);
  check_same_device("ids", ids, "embedding", embedding);
  check_integral("ids", ids);
  check(ids.dim() >= 1, "ids must have shape (..., T), got ()");
  check_same_device("target", target, "embedding", embedding);
  check_integral("target", target);
  const Shape row_shape = leading_sizes(ids);
  check(target.sizes().equals(row_shape), "target must have the shape of ids without its last dimension, ",
        ShapeString(row_shape), ", got ", ShapeString(target));
  check_floating("embedding", embedding);
  check(embedding.dim() == 2, "embedding must have shape (V, D), got ", ShapeString(embedding));
  check(embedding.size(0) > 0 || target.numel() == 0, "embedding must have at least one row, got shape ",
        ShapeString(embedding));
  check(weight1.dim() == 2, "weight1 must have shape (H, T*D), got ", ShapeString(weight1));
  const int64_t examples = target.numel(), length = ids.size(ids.dim() - 1);
  const int64_t vocab_size = embedding.size(0), embedding_dim = embedding.size(1), hidden_dim = weight1.size(0);
  const NamedSize n{"N", examples}, v{"V", vocab_size}, t{"T", length}, d{"D", embedding_dim}, h{"H", hidden_dim};
  check_sizes({t, d, h});
  check_sizes({n, t, d});
  check_sizes({n, t, h});
  check_sizes({v, t, d});
  check_sizes({v, t, h});
  check_sizes({n, v});

  const auto at_least_one = [](int64_t size) { return size > 0 ? size : 1; };
  MlpArguments arguments{
      {at_least_one(vocab_size), at_least_one(length), at_least_one(embedding_dim), at_least_one(hidden_dim), false},
      {},
      {},
      length > 0 ? ids : zeros({examples, 1}, ScalarType::Int, ids.device()),
      examples,
      ignore_index,
      options.reduction,
      softcap};
  const auto add = [&](int i, const OptionalTensor& tensor, std::initializer_list<int64_t> expected,
                       std::initializer_list<int64_t> computed, const char* meaning) {
    if (tensor.has_value()) {
      check_matches(kMlpNames[i], *tensor, "embedding", embedding);
      check_shape(kMlpNames[i], *tensor, expected, meaning);
    }
    arguments.sizes.emplace_back(expected);
    arguments.parameters.push_back(tensor.has_value() && tensor->numel() > 0
                                       ? contiguous_as(*tensor, type)
                                       : zeros(computed, type, embedding.device()));
  };
  const ModelShape& shape = arguments.shape;
  add(0, embedding, {vocab_size, embedding_dim}, {shape.vocab_size, shape.embedding_dim}, "(V, D) = ");
  add(1, weight1, {hidden_dim, length * embedding_dim}, {shape.hidden_dim, shape.context_length * shape.embedding_dim},
      "(H, T*D) = ");
  add(2, bias1, {hidden_dim}, {shape.hidden_dim}, "(H,) = ");
  add(3, weight2, {vocab_size, hidden_dim}, {shape.vocab_size, shape.hidden_dim}, "(V, H) = ");
  add(4, bias2, {vocab_size}, {shape.vocab_size}, "(V,) = ");
  return arguments;
}

void check_mlp_upstream(const MlpArguments& arguments, const Tensor& grad_output, const Tensor& embedding) {
  const int64_t expected = arguments.reduction == Reduction::kNone ? arguments.examples : 1;
  check_same_device("grad_output", grad_output, "embedding", embedding);
  check_elements("grad_output", grad_output, expected);
}

Tensor mlp_gradient(const MlpArguments& arguments, int i, const Tensor& gradient, ScalarType type) {
  const std::vector<int64_t>& sizes = arguments.sizes[i];
  for (const int64_t size : sizes) {
    if (size == 0) return allocate(sizes, type, gradient.device());
  }
  return contiguous_as(gradient, type);
}

}  // namespace charlm
