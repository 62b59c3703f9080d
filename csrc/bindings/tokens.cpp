#include "bindings/tokens.h"

namespace charlm {

namespace {

template <typename Value>
void check_range(const char* name, const Value* values, Shape shape, int64_t count, int64_t limit, const char* what) {
  int64_t bad = 0;  // counted without a branch, so that the loop vectorises
  for (int64_t i = 0; i < count; ++i) bad += values[i] < 0 || values[i] >= limit;
  if (bad == 0) [[likely]] {
    return;
  }
  int64_t i = 0;
  while (values[i] >= 0 && values[i] < limit) ++i;
  out_of_range(name, i, shape, std::to_string(values[i]), limit, what);
}

template <typename Value>
Tensor checked_as(const char* name, const Tensor& tensor, ScalarType type, int64_t limit, const char* what) {
  const Tensor values = contiguous_as(tensor, type);
  check_range(name, values.const_data_ptr<Value>(), tensor.sizes(), values.numel(), limit, what);
  return values;
}

}  // namespace

Tensor checked_int64(const char* name, const Tensor& tensor, int64_t limit, const char* what) {
  check_integral(name, tensor);
  check_on_cpu(name, tensor);
  return checked_as<int64_t>(name, tensor, ScalarType::Long, limit, what);
}

Tensor checked_int32(const char* name, const Tensor& tensor, int64_t limit, const char* what) {
  check_integral(name, tensor);
  check_on_cpu(name, tensor);
  if (tensor.scalar_type() == ScalarType::Int) return checked_as<int32_t>(name, tensor, ScalarType::Int, limit, what);
  return contiguous_as(checked_as<int64_t>(name, tensor, ScalarType::Long, limit, what), ScalarType::Int);
}

namespace {

template <typename Function>
void with_integers(const Tensor& tensor, const Function& function) {
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Long:
      return function(static_cast<const int64_t*>(data));
    case ScalarType::Int:
      return function(static_cast<const int32_t*>(data));
    case ScalarType::Short:
      return function(static_cast<const int16_t*>(data));
    case ScalarType::Char:
      return function(static_cast<const int8_t*>(data));
    case ScalarType::Byte:
      return function(static_cast<const uint8_t*>(data));
    case ScalarType::UInt16:
      return function(static_cast<const uint16_t*>(data));
    case ScalarType::UInt32:
      return function(static_cast<const uint32_t*>(data));
    default:
      return function(static_cast<const uint64_t*>(data));
  }
}

// Rows `indices` (null: the first `count`) of a vector or a matrix of integers, checked, to out (count, columns); those
// that are `ignored`, null for none, as kIgnored.
void gather_int32(const char* name, const Tensor& tensor, const int64_t* indices, int64_t count, int64_t limit,
                  const char* what, const int64_t* ignored, int32_t* out) {
  check_integral(name, tensor);
  check_on_cpu(name, tensor);
  const bool is_matrix = tensor.dim() == 2;
  const int64_t columns = is_matrix ? tensor.size(1) : 1, column_stride = is_matrix ? tensor.stride(1) : 0;
  const int64_t row_stride = tensor.stride(0);
  const auto bound = static_cast<uint64_t>(limit);
  with_integers(tensor, [&](const auto* data) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = indices != nullptr ? indices[i] : i;
      for (int64_t c = 0; c < columns; ++c) {
        const auto value = data[row * row_stride + c * column_stride];
        if (ignored != nullptr && static_cast<int64_t>(value) == *ignored) {
          *out++ = kIgnored;
          continue;
        }
        if (static_cast<uint64_t>(value) >= bound) [[unlikely]] {  // a negative one is huge
          out_of_range(name, row * columns + c, tensor.sizes(), std::to_string(value), limit, what);
        }
        *out++ = static_cast<int32_t>(value);
      }
    }
  });
}

// contexts as they are if int32 and contiguous, then only the `used` rows are checked; otherwise a converted copy.
Tensor contiguous_int32(const char* name, const Tensor& contexts, int64_t limit, const int32_t* used, int64_t count) {
  const int64_t length = contexts.size(1);
  if (contexts.scalar_type() != ScalarType::Int || !contexts.is_contiguous()) {
    return checked_int32(name, contexts, limit, "tokens");
  }
  check_on_cpu(name, contexts);
  const int32_t* tokens = contexts.const_data_ptr<int32_t>();
  uint32_t largest = 0;  // as unsigned numbers, negative ones are the largest
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* context = tokens + used[i] * length;
    for (int64_t t = 0; t < length; ++t) {
      largest = static_cast<uint32_t>(context[t]) > largest ? static_cast<uint32_t>(context[t]) : largest;
    }
  }
  if (largest >= static_cast<uint64_t>(limit)) {
    check_range(name, tokens, contexts.sizes(), contexts.numel(), limit, "tokens");
  }
  return contexts;
}

}  // namespace

Examples read_examples(const char* contexts_name, const Tensor& contexts, const char* targets_name,
                       const Tensor& targets, const OptionalTensor& context_index, int64_t vocab_size,
                       const int64_t* indices, int64_t count, const int64_t* ignore_index) {
  const int64_t rows = contexts.size(0), length = contexts.size(1);
  constexpr int64_t kLimit = int64_t{1} << 31;  // contexts, examples and tokens are numbered in 32 bits
  check(rows < kLimit, contexts_name, " must have fewer than 2^31 rows, got ", ShapeString(contexts));
  check(count < kLimit, "there must be fewer than 2^31 examples, got ", count);
  check_sizes({{"N", count}, {"T", length}});
  check(!context_index.has_value() || context_index->dim() == 1, "context_index must have shape (N,), got ",
        context_index.has_value() ? ShapeString(*context_index) : ShapeString(contexts));
  const int64_t examples = context_index.has_value() ? context_index->numel() : rows;
  check_shape(targets_name, targets, {{"N", examples}});

  const Workspace<int32_t> context(count), target(count);
  gather_int32(targets_name, targets, indices, count, vocab_size, "classes", ignore_index, target.data());
  Examples result{{}, {}, Workspace<Example>(count)};
  if (context_index.has_value()) {
    gather_int32("context_index", *context_index, indices, count, rows, "contexts", nullptr, context.data());
    result.tokens = contiguous_int32(contexts_name, contexts, vocab_size, context.data(), count);
    result.contexts = {length, vocab_size, rows, result.tokens.const_data_ptr<int32_t>()};
  } else {
    const Workspace<int32_t> tokens(count * length);
    gather_int32(contexts_name, contexts, indices, count, vocab_size, "tokens", nullptr, tokens.data());
    result.tokens = allocate({count, length}, ScalarType::Int);
    int32_t* distinct = result.tokens.mutable_data_ptr<int32_t>();
    const Workspace<int32_t> table(number_contexts_table_size(count));
    result.contexts = {length, vocab_size,
                       number_contexts(tokens.data(), count, length, table.data(), context.data(), distinct), distinct};
  }
  for (int64_t i = 0; i < count; ++i) result.pairs.data()[i] = {context.data()[i], target.data()[i]};
  return result;
}

}  // namespace charlm
