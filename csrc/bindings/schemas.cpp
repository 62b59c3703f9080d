// Every op of charlm, by schema: the table of contents. Each is implemented in bindings/<op>.cpp for one device at a
// time, has its fake in charlm/ops/<op>.py, and its formula in kernels/<op>.h.
//
// reduction is 0 "none", 1 "mean", 2 "sum"; softcap 0 means none. Gradients that are not asked for come back empty.
// A loss is in the dtype that is computed in, float32 for half precision; rounding it is the caller's choice.
// lse (2 N,) is what forward hands to backward: two numbers a row whose sum is logsumexp, first those of one kind, then
// the others; under the mean there is one more, (2 N + 1,), which the sum is divided by. Where cross_entropy_forward on
// the CPU computes the gradient, it is the log-probability of each target instead, (N,): see
// charlm/ops/cross_entropy.py. rows (min(V, N*T), D) are the embeddings that backward reads, as they were: a copy of
// the table, or what the ids picked from it, one row each, where that is less.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(charlm, ops) {
  ops.def(
      "cross_entropy_forward(Tensor input, Tensor target, Tensor? weight, Tensor? token_weights, int ignore_index, "
      "int reduction, float label_smoothing, float softcap, float z_loss, bool compute_gradient) "
      "-> (Tensor loss, Tensor lse, Tensor input_gradient)");
  ops.def(
      "cross_entropy_backward(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? token_weights, "
      "Tensor lse, int ignore_index, int reduction, float label_smoothing, float softcap, float z_loss, "
      "bool input_gradient, bool target_gradient) -> (Tensor input_gradient, Tensor target_gradient)");
  ops.def(
      "embedding_linear_forward(Tensor ids, Tensor embedding, Tensor weight, Tensor? bias, int activation, "
      "bool keep_rows) -> (Tensor output, Tensor rows)");
  ops.def(
      "embedding_linear_backward(Tensor grad_output, Tensor output, Tensor ids, Tensor rows, Tensor weight, "
      "Tensor? bias, int activation, SymInt vocab_size, bool embedding_gradient, bool weight_gradient, "
      "bool bias_gradient) -> (Tensor embedding_gradient, Tensor weight_gradient, Tensor bias_gradient)");
  ops.def(
      "linear_cross_entropy_forward(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, "
      "Tensor? weight, Tensor? token_weights, int ignore_index, int reduction, float label_smoothing, float softcap, "
      "float z_loss, bool input_gradient, bool weight_gradient, bool bias_gradient) "
      "-> (Tensor loss, Tensor lse, Tensor input_gradient, Tensor weight_gradient, Tensor bias_gradient)");
  ops.def(
      "linear_cross_entropy_backward(Tensor grad_output, Tensor input, Tensor linear_weight, Tensor target, "
      "Tensor? linear_bias, Tensor? weight, Tensor? token_weights, Tensor lse, int ignore_index, int reduction, "
      "float label_smoothing, float softcap, float z_loss, bool input_gradient, bool weight_gradient, "
      "bool bias_gradient, bool target_gradient) "
      "-> (Tensor input_gradient, Tensor weight_gradient, Tensor bias_gradient, Tensor target_gradient)");
  // Each gradient = scale * gradient, of those that forward computed. Where the scale is no finite number, the rows of
  // the first that target names ignore_index stay 0, and all of it does where no row counts. class_dim is the dimension
  // of the first that is not one of rows, the others are sums over rows; -1 where all are. target null: all rows count.
  ops.def(
      "scale_gradients_(Tensor(a!)[] gradients, Tensor scale, Tensor? target, int ignore_index, int class_dim) -> ()");
  // Results but argmax and rank, which are int64, are in the dtype that is computed in; kept (3, N) is for backward.
  // logits (C, D), empty where none are kept, are memory of the weight's gradient, which linear_log_probs_backward_
  // leaves there: those of as many rows as it has room for. On the CPU alone.
  ops.def(
      "linear_log_probs_forward(Tensor input, Tensor linear_weight, Tensor ids, Tensor? linear_bias, int ignore_index, "
      "float temperature, float softcap, bool keeps_logits) "
      "-> (Tensor log_probs, Tensor entropy, Tensor logsumexp, Tensor argmax, Tensor rank, Tensor kept, Tensor "
      "logits)");
  ops.def(
      "linear_log_probs_backward(Tensor? log_probs_gradient, Tensor? entropy_gradient, Tensor? logsumexp_gradient, "
      "Tensor input, Tensor linear_weight, Tensor ids, Tensor? linear_bias, Tensor kept, int ignore_index, "
      "float temperature, float softcap, bool input_gradient, bool weight_gradient, bool bias_gradient) "
      "-> (Tensor input_gradient, Tensor weight_gradient, Tensor bias_gradient)");
  ops.def(
      "linear_log_probs_backward_(Tensor? log_probs_gradient, Tensor? entropy_gradient, Tensor? logsumexp_gradient, "
      "Tensor input, Tensor linear_weight, Tensor ids, Tensor? linear_bias, Tensor kept, Tensor(a!) logits, "
      "int ignore_index, float temperature, float softcap, bool input_gradient, bool weight_gradient, bool "
      "bias_gradient) "
      "-> (Tensor input_gradient, Tensor bias_gradient)");
  ops.def(
      "log_probs_forward(Tensor input, Tensor ids, int ignore_index, float temperature, float softcap) "
      "-> (Tensor log_probs, Tensor entropy, Tensor logsumexp, Tensor argmax, Tensor rank, Tensor kept)");
  ops.def(
      "log_probs_backward(Tensor? log_probs_gradient, Tensor? entropy_gradient, Tensor? logsumexp_gradient, "
      "Tensor input, Tensor ids, Tensor kept, int ignore_index, float temperature, float softcap) "
      "-> Tensor input_gradient");
  // out = addend + a b; the addend is out itself or one row. For the other ops, on CUDA only: see bindings/cuda.
  ops.def("multiply_add(Tensor addend, Tensor a, Tensor b, Tensor(a!) out) -> ()");
  // parameters: embedding, weight1, bias1, weight2, bias2[, direct_weight]. optimizer 0 is SGD, whose state with
  // momentum is one tensor a parameter; 1 is AdamW, with the first moments of all parameters, then the second.
  ops.def(
      "train_steps(Tensor(a!)[] parameters, Tensor(b!)[] optimizer_state, Tensor contexts, Tensor targets, "
      "Tensor? context_index, Tensor batch_indices, Tensor learning_rates, int optimizer, float momentum, float beta1, "
      "float beta2, float eps, float weight_decay, float max_grad_norm, float softcap, int first_step) -> Tensor");
  // Every step on the same distinct contexts, whose targets and counts are compressed rows: the whole data set.
  ops.def(
      "train_full_steps(Tensor(a!)[] parameters, Tensor(b!)[] optimizer_state, Tensor contexts, Tensor row_ptr, "
      "Tensor targets, Tensor counts, Tensor learning_rates, int optimizer, float momentum, float beta1, float beta2, "
      "float eps, float weight_decay, float max_grad_norm, float softcap, int first_step) -> Tensor");
  // M models of one shape, trained as train_steps and train_full_steps train each of them. parameters: those of the
  // first model, then of the second, ..., and so optimizer_state; learning_rates (M, S), batch_indices (M, S, B).
  // options (M, 7): momentum, beta1, beta2, eps, weight_decay, max_grad_norm and softcap, 0 for none. first_steps (M,).
  ops.def(
      "train_population(Tensor(a!)[] parameters, Tensor(b!)[] optimizer_state, Tensor contexts, Tensor targets, "
      "Tensor? context_index, Tensor batch_indices, Tensor learning_rates, int optimizer, Tensor options, "
      "Tensor first_steps) -> Tensor");
  ops.def(
      "train_full_population(Tensor(a!)[] parameters, Tensor(b!)[] optimizer_state, Tensor contexts, Tensor row_ptr, "
      "Tensor targets, Tensor counts, Tensor learning_rates, int optimizer, Tensor options, Tensor first_steps) "
      "-> Tensor");
  // The mean loss of those of train_full_steps, in float64.
  ops.def(
      "evaluate_full(Tensor[] parameters, Tensor contexts, Tensor row_ptr, Tensor targets, Tensor counts, "
      "float softcap) -> Tensor");
  ops.def(
      "mlp_cross_entropy_forward(Tensor ids, Tensor target, Tensor embedding, Tensor weight1, Tensor? bias1, "
      "Tensor weight2, Tensor? bias2, int ignore_index, int reduction, float softcap, bool compute_gradient) "
      "-> (Tensor loss, Tensor embedding_gradient, Tensor weight1_gradient, Tensor bias1_gradient, "
      "Tensor weight2_gradient, Tensor bias2_gradient)");
  ops.def(
      "mlp_cross_entropy_backward(Tensor grad_output, Tensor ids, Tensor target, Tensor embedding, Tensor weight1, "
      "Tensor? bias1, Tensor weight2, Tensor? bias2, int ignore_index, int reduction, float softcap) "
      "-> (Tensor embedding_gradient, Tensor weight1_gradient, Tensor bias1_gradient, Tensor weight2_gradient, "
      "Tensor bias2_gradient)");
}
