#include "bindings/tokens.h"

namespace charlm {

Tensor checked_int32(const char* name, const Tensor& tensor, int64_t columns, int64_t limit, const char* what) {
  check_integral(name, tensor);
  check_on_cpu(name, tensor);
  if (tensor.scalar_type() == ScalarType::Int) {
    const Tensor same = contiguous_as(tensor, ScalarType::Int);
    check_range(name, same.const_data_ptr<int32_t>(), same.numel(), columns, limit, what);
    return same;
  }
  const Tensor wide = contiguous_as(tensor, ScalarType::Long);
  check_range(name, wide.const_data_ptr<int64_t>(), wide.numel(), columns, limit, what);
  return contiguous_as(wide, ScalarType::Int);
}

ExampleTensors read_examples(const char* contexts_name, const Tensor& contexts, const char* targets_name,
                             const Tensor& targets, const OptionalTensor& context_index, int64_t vocab_size) {
  const int64_t rows = contexts.size(0), length = contexts.size(1);
  check(rows < (int64_t{1} << 31), contexts_name, " must have fewer than 2^31 rows, got ", ShapeString(contexts));
  const Tensor tokens = checked_int32(contexts_name, contexts, length, vocab_size, "tokens");
  const int64_t count = context_index.has_value() ? context_index->numel() : rows;
  check(targets.dim() == 1 && targets.size(0) == count, targets_name, " must have shape (N=", count, ",), got ",
        ShapeString(targets));
  const Tensor classes = checked_int32(targets_name, targets, 0, vocab_size, "classes");

  ExampleTensors result{{length, vocab_size, rows, tokens.const_data_ptr<int32_t>(), nullptr},
                        tokens,
                        std::unique_ptr<Example[]>(new Example[count])};
  Tensor index;
  if (context_index.has_value()) {
    check(context_index->dim() == 1, "context_index must have shape (N,), got ", ShapeString(*context_index));
    index = checked_int32("context_index", *context_index, 0, rows, "contexts");
  } else {
    index = allocate({rows}, ScalarType::Int);
    result.contexts = allocate({rows, length}, ScalarType::Int);
    const std::unique_ptr<int32_t[]> table(new int32_t[number_contexts_table_size(rows)]);
    result.examples.num_contexts =
        number_contexts(tokens.const_data_ptr<int32_t>(), rows, length, table.get(), index.mutable_data_ptr<int32_t>(),
                        result.contexts.mutable_data_ptr<int32_t>());
    result.examples.contexts = result.contexts.const_data_ptr<int32_t>();
  }
  const int32_t* context = index.const_data_ptr<int32_t>();
  const int32_t* target = classes.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < count; ++n) result.pairs[n] = {context[n], target[n]};
  result.examples.examples = result.pairs.get();
  return result;
}

}  // namespace charlm
