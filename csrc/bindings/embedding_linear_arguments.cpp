#include "bindings/embedding_linear_arguments.h"

#include <limits>

namespace charlm {
namespace {

IntegerType integer_type(ScalarType type) {
  switch (type) {
    case ScalarType::Char:
      return IntegerType::kInt8;
    case ScalarType::Short:
      return IntegerType::kInt16;
    case ScalarType::Int:
      return IntegerType::kInt32;
    case ScalarType::Byte:
      return IntegerType::kUInt8;
    case ScalarType::UInt16:
      return IntegerType::kUInt16;
    case ScalarType::UInt32:
      return IntegerType::kUInt32;
    case ScalarType::UInt64:
      return IntegerType::kUInt64;
    default:
      return IntegerType::kInt64;
  }
}

}  // namespace

void check_embedding_linear(const Tensor& ids, const Tensor& embedding, const Tensor& weight,
                            const OptionalTensor& bias, int64_t activation) {
  check(activation >= 0 && activation < kActivations, "activation must be between 0 and ", kActivations - 1, ", got ",
        activation);
  check_same_device("ids", ids, "embedding", embedding);
  check_integral("ids", ids);
  check(ids.dim() >= 1, "ids must have shape (..., T), got ()");
  const int64_t context_length = ids.size(ids.dim() - 1);
  check_floating("embedding", embedding);
  check(embedding.dim() == 2, "embedding must have shape (V, D), got ", ShapeString(embedding));
  check(embedding.size(0) <= std::numeric_limits<int32_t>::max(), "embedding must have fewer than 2^31 rows, got ",
        ShapeString(embedding));
  check(embedding.size(0) > 0 || ids.numel() == 0, "embedding must have at least one row, got shape ",
        ShapeString(embedding));
  check_matches("weight", weight, "embedding", embedding);
  check(weight.dim() == 2, "weight must have shape (H, T*D), got ", ShapeString(weight));
  const NamedSize length{"T", context_length}, dim{"D", embedding.size(1)}, hidden{"H", weight.size(0)};
  const NamedSize rows{"N", context_rows(ids)}, vocab{"V", embedding.size(0)};
  check_sizes({length, dim, hidden});
  check_sizes({rows, length, dim});
  check_sizes({rows, length, hidden});
  check_sizes({vocab, length, hidden});
  const int64_t width = context_length * embedding.size(1);
  check_shape("weight", weight, {hidden, {"T*D", width}});
  if (!bias.has_value()) return;
  check_matches("bias", *bias, "embedding", embedding);
  check_shape("bias", *bias, {hidden});
}

bool keeps_picked_rows(const Tensor& ids, int64_t vocab_size) { return vocab_size > ids.numel(); }

void check_embedding_linear_backward(const Tensor& grad_output, const Tensor& output, const Tensor& ids,
                                     const Tensor& rows, const Tensor& weight, const OptionalTensor& bias,
                                     int64_t activation, int64_t vocab_size) {
  check_embedding_linear(ids, rows, weight, bias, activation);
  check(vocab_size >= 0 && vocab_size <= std::numeric_limits<int32_t>::max(),
        "vocab_size must be between 0 and 2^31 - 1, got ", vocab_size);
  check_sizes({{"V", vocab_size}, {"D", rows.size(1)}});
  const int64_t count = keeps_picked_rows(ids, vocab_size) ? ids.numel() : vocab_size;
  check(rows.size(0) == count && rows.is_contiguous(),
        "rows must be what the forward op returned, contiguous, of shape (", count, ", D), got shape ",
        ShapeString(rows));
  check_matches("grad_output", grad_output, "rows", rows);
  check_matches("output", output, "rows", rows);
  const std::vector<int64_t> output_shape = layer_shape(ids, weight);
  check_shape("grad_output", grad_output, output_shape);
  check_shape("output", output, output_shape);
}

std::vector<int64_t> layer_shape(const Tensor& ids, const Tensor& weight) {
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  shape.back() = weight.size(0);
  return shape;
}

int64_t context_rows(const Tensor& ids) { return product("ids", leading_sizes(ids)); }

std::optional<int64_t> row_stride(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  int64_t stride = 0, expected = -1;
  for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (expected < 0) {
      stride = tensor.stride(d);
    } else if (tensor.stride(d) != expected) {
      return std::nullopt;
    }
    expected = tensor.stride(d) * tensor.size(d);
  }
  return stride;
}

Tensor with_rows(const Tensor& tensor) { return row_stride(tensor).has_value() ? tensor : as_contiguous(tensor); }

TokenIds token_ids(const Tensor& ids) {
  TokenIds result;
  result.data = ids.const_data_ptr();
  result.type = integer_type(ids.scalar_type());
  result.context_length = ids.size(ids.dim() - 1);
  result.rows = ids.numel() / result.context_length;
  result.row_stride = *row_stride(ids);
  result.position_stride = ids.stride(ids.dim() - 1);
  return result;
}

}  // namespace charlm
