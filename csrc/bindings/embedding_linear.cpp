#include "bindings/branches.h"
#include "bindings/embedding_linear_arguments.h"
#include "bindings/layers.h"
#include "kernels/host_library.h"

namespace charlm {
namespace {

StoredMatrix stored_matrix(const Tensor& tensor) {
  StoredMatrix matrix;
  matrix.data = const_cast<void*>(tensor.const_data_ptr());
  matrix.storage = storage_of(tensor);
  matrix.row_stride = *row_stride(tensor);
  matrix.column_stride = tensor.stride(tensor.dim() - 1);
  return matrix;
}

// The checked arguments, converted, and the problem that points into them, but for the table.
template <typename T>
struct Arguments {
  Tensor ids, weight;
  OptionalTensor bias;
  Workspace<int32_t> tokens;
  EmbeddingLinear<T> problem;

  Arguments(const Tensor& ids, const Tensor& weight, const OptionalTensor& bias, int64_t activation, int64_t vocab_size,
            int64_t embedding_dim)
      : ids(with_rows(ids)),
        weight(contiguous_as(weight, kDtype<T>)),
        bias(contiguous_as(bias, kDtype<T>)),
        tokens(std::max(ids.numel(), context_rows(ids))) {
    problem.context_length = ids.size(ids.dim() - 1);
    problem.rows = context_rows(ids);
    problem.vocab_size = std::max<int64_t>(vocab_size, 1);
    problem.embedding_dim = embedding_dim;
    problem.hidden_dim = weight.size(0);
    problem.activation = static_cast<Activation>(activation);
    problem.tokens = tokens.data();
    problem.weight = this->weight.template const_data_ptr<T>();
    if (bias.has_value()) problem.bias = this->bias->template const_data_ptr<T>();
    if (problem.context_length == 0) {  // computed as contexts of one token, which has no dimensions
      problem.context_length = 1;
      problem.embedding_dim = 0;
      fill_zero(tokens.data(), problem.rows * sizeof(int32_t));
    } else if (const TokenIds flat = token_ids(this->ids); !read_tokens(flat, problem.vocab_size, tokens.data())) {
      refuse_ids(ids.sizes(), flat);
    }
  }

 private:
  [[noreturn]] void refuse_ids(Shape shape, const TokenIds& flat) const {
    const int64_t place = first_bad_id(flat, problem.vocab_size), length = flat.context_length;
    const int64_t id = id_at(flat, place / length, place % length);
    const bool is_signed = flat.type != IntegerType::kUInt64;
    out_of_range("ids", place, shape, is_signed ? std::to_string(id) : std::to_string(static_cast<uint64_t>(id)),
                 problem.vocab_size, "embeddings");
  }
};

// The rows of the table that backward reads, as it may have changed by then: a copy of the table, or memory for what
// the problem is to pick from it.
template <typename T>
Tensor kept_rows(const Tensor& ids, const Tensor& embedding, EmbeddingLinear<T>* problem) {
  if (keeps_picked_rows(ids, embedding.size(0))) {
    const Tensor rows = allocate({ids.numel(), embedding.size(1)}, embedding.scalar_type());
    problem->picked_rows = rows.mutable_data_ptr();
    return rows;
  }
  Tensor copy = allocate(embedding.sizes(), embedding.scalar_type());
  if (embedding.is_contiguous()) {
    copy_bytes(copy.mutable_data_ptr(), embedding.const_data_ptr(), embedding.numel() * embedding.element_size());
  } else {
    torch::stable::copy_(copy, embedding);
  }
  return copy;
}

}  // namespace

std::tuple<Tensor, Tensor> embedding_linear_forward(const Tensor ids, const Tensor embedding, const Tensor weight,
                                                    const OptionalTensor bias, int64_t activation, bool keeps_rows) {
  check_on_cpu("ids", ids);
  check_on_cpu("embedding", embedding);
  check_embedding_linear(ids, embedding, weight, bias, activation);
  return dispatch_compute_type(embedding, [&](auto type) -> std::tuple<Tensor, Tensor> {
    Arguments<decltype(type)> arguments(ids, weight, bias, activation, embedding.size(0), embedding.size(1));
    auto& problem = arguments.problem;
    problem.embedding = stored_matrix(embedding);
    const Tensor output = allocate(layer_shape(ids, weight), embedding.scalar_type());
    problem.output = stored_matrix(output);
    const Tensor rows = keeps_rows ? kept_rows(ids, embedding, &problem) : allocate({0}, embedding.scalar_type());
    took_branch(cpu::embedding_linear_forward(problem) ? "embedding_linear_forward/project"
                                                       : "embedding_linear_forward/gather");
    return {output, rows};
  });
}

std::tuple<Tensor, Tensor, Tensor> embedding_linear_backward(const Tensor grad_output, const Tensor output,
                                                             const Tensor ids, const Tensor rows, const Tensor weight,
                                                             const OptionalTensor bias, int64_t activation,
                                                             int64_t vocab_size, bool wants_embedding,
                                                             bool wants_weight, bool wants_bias) {
  check_on_cpu("ids", ids);
  check_on_cpu("rows", rows);
  check_embedding_linear_backward(grad_output, output, ids, rows, weight, bias, activation, vocab_size);
  return dispatch_compute_type(rows, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    const int64_t embedding_dim = rows.size(1), hidden_dim = weight.size(0);
    Arguments<decltype(type)> arguments(ids, weight, bias, activation, vocab_size, embedding_dim);
    auto& problem = arguments.problem;
    problem.embedding = stored_matrix(rows);
    if (keeps_picked_rows(ids, vocab_size)) problem.picked_rows = problem.embedding.data;
    const Tensor gradient_rows = with_rows(grad_output), output_rows = with_rows(output);
    problem.grad_output = stored_matrix(gradient_rows);
    problem.output = stored_matrix(output_rows);

    const Tensor embedding_gradient =
        allocate_gradient({vocab_size, embedding_dim}, wants_embedding, &problem.embedding_gradient);
    const Tensor weight_gradient =
        allocate_gradient({hidden_dim, weight.size(1)}, wants_weight, &problem.weight_gradient);
    const Tensor bias_gradient = allocate_gradient({hidden_dim}, wants_bias, &problem.bias_gradient);
    fill_zero(problem.embedding_gradient, embedding_gradient.numel() * sizeof(type));
    took_branch(cpu::embedding_linear_backward(problem) ? "embedding_linear_backward/project"
                                                        : "embedding_linear_backward/gather");
    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, rows.scalar_type()); };
    return {stored(embedding_gradient), stored(weight_gradient), stored(bias_gradient)};
  });
}

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) {
  ops.impl("embedding_linear_forward", TORCH_BOX(&embedding_linear_forward));
  ops.impl("embedding_linear_backward", TORCH_BOX(&embedding_linear_backward));
}

}  // namespace charlm
