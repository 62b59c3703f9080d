#include "bindings/branches.h"
#include "bindings/direct_calls.h"
#include "bindings/direct_loss.h"
#include "bindings/training.h"
#include "kernels/linear_cross_entropy.h"
#include "kernels/mlp_cross_entropy.h"
#include "kernels/token_index.h"

namespace charlm {
namespace {

// A tensor for the gradient of a contiguous one, None where it is not wanted, and its memory. False with an error set.
template <typename T>
bool make_gradient(const PlainTensor& like, bool wanted, PyReference* tensor, T** data) {
  *tensor = wanted ? empty_like(like.object) : none();
  if (*tensor == nullptr) return false;
  *data = wanted ? static_cast<T*>(memory_of(*tensor)) : nullptr;
  return !wanted || *data != nullptr;
}

// Of linear_cross_entropy, but for what is computed in.
struct Layer {
  PlainTensor input, weight, target, bias;
  PyObject* class_weight;
  CrossEntropyOptions options;
  int64_t rows, features, classes, row_stride;
  bool wants_input, wants_weight, wants_bias;

  // Starting with (input, linear_weight, target, linear_bias, weight), options, which gradients are wanted.
  bool read(PyObject* const* tensors, PyObject* options_object, PyObject* const* wanted) {
    class_weight = tensors[4];
    const bool has_bias = tensors[3] != Py_None;
    if (!read_plain(tensors[0], &input) || !(input.is(Storage::kFloat32) || input.is(Storage::kFloat64)) ||
        !read_plain(tensors[1], &weight) || !read_plain(tensors[2], &target) ||
        !read_options(options_object, &options) || input.dims == 0 || (has_bias && !read_plain(tensors[3], &bias))) {
      return false;
    }
    features = input.sizes[input.dims - 1];
    rows = input.count / features;
    classes = weight.sizes[0];
    // Also rows that lie apart, as those of the last position of a sequence: their gradient is contiguous.
    row_stride = input.is_contiguous ? features : input.strides[0];
    const bool has_rows = input.is_contiguous || (input.dims == 2 && input.strides[1] == 1 && row_stride > features);
    wants_input = wanted[0] == Py_True;
    wants_weight = wanted[1] == Py_True;
    wants_bias = has_bias && wanted[2] == Py_True;
    return has_rows && weight.is(input.storage) && weight.is_matrix(classes, features) && !target.is_floating &&
           target.has_shape(input.dims - 1, input.sizes) &&
           (!has_bias || (bias.is(input.storage) && bias.is_vector(classes)));
  }
};

// A call of the kernels, in float32 or float64.
template <typename T>
struct LayerCall {
  const Layer& layer;
  LossArguments<T> loss;
  cpu::LinearCrossEntropy<T> problem;
  PyReference of_input, of_weight, of_bias;

  explicit LayerCall(const Layer& layer)
      : layer(layer), loss(layer.classes, layer.input.dims - 1, layer.input.sizes, layer.options) {}
  // False where something is wrong.
  bool take_targets() { return loss.take_classes(layer.target) && loss.take_weight(layer.class_weight); }
  // False with an error set.
  bool make_gradients() {
    return make_gradient(layer.input, layer.wants_input, &of_input, &problem.layer.input_gradient) &&
           make_gradient(layer.weight, layer.wants_weight, &of_weight, &problem.weight_gradient) &&
           make_gradient(layer.bias, layer.wants_bias, &of_bias, &problem.layer.bias_gradient);
  }
  void run() {
    problem.layer.input =
        Matrix(layer.input.data, layer.input.storage, layer.rows, layer.features, layer.row_stride, 1);
    problem.layer.weight = Matrix(layer.weight.data, layer.weight.storage, layer.classes, layer.features);
    problem.layer.bias = static_cast<const T*>(layer.bias.data);
    problem.loss = loss.problem;
    cpu::linear_cross_entropy(problem);
  }
};

template <typename T>
PyObject* layer_forward(const Layer& layer, bool keeps_lse) {
  LayerCall<T> call(layer);
  if (!call.take_targets()) return nullptr;
  const PyReference lse = keeps_lse ? call.loss.make_lse() : none();
  const LossResult<T> result(kStorageOf<T>, &call.loss);
  if (!result.is_possible() || lse == nullptr || !call.make_gradients()) return nullptr;
  call.run();
  took_branch("linear_cross_entropy_forward/direct");
  return PyTuple_Pack(5, result.finished(call.loss.problem), lse.get(), call.of_input.get(), call.of_weight.get(),
                      call.of_bias.get());
}

template <typename T>
PyObject* layer_backward(const Layer& layer, PyObject* grad_output, PyObject* lse) {
  LayerCall<T> call(layer);
  if (!call.take_targets() || !call.loss.take_lse(lse) || !call.loss.take_upstream(grad_output) ||
      !call.make_gradients()) {
    return nullptr;
  }
  call.run();
  took_branch("linear_cross_entropy_backward/direct");
  return PyTuple_Pack(4, call.of_input.get(), call.of_weight.get(), call.of_bias.get(), Py_None);
}

}  // namespace

PyObject* linear_cross_entropy_forward_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Layer layer;
  if (count != 10 || !layer.read(arguments, arguments[5], arguments + 6)) return not_for_it();
  const bool keeps_lse = arguments[9] == Py_True;
  return or_none([&] {
    return layer.input.storage == Storage::kFloat64 ? layer_forward<double>(layer, keeps_lse)
                                                    : layer_forward<float>(layer, keeps_lse);
  });
}

PyObject* linear_cross_entropy_backward_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Layer layer;
  if (count != 11 || !layer.read(arguments + 1, arguments[7], arguments + 8)) return not_for_it();
  return or_none([&] {
    return layer.input.storage == Storage::kFloat64 ? layer_backward<double>(layer, arguments[0], arguments[6])
                                                    : layer_backward<float>(layer, arguments[0], arguments[6]);
  });
}

PyObject* mlp_cross_entropy_forward_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  constexpr int kParameters = 5;
  PlainTensor ids, target, parameters[kParameters];
  CrossEntropyOptions options;
  if (count != 8 || !read_plain(arguments[0], &ids) || !read_plain(arguments[1], &target) ||
      !read_options(arguments[7], &options) || options.reduction == Reduction::kNone) {
    return not_for_it();
  }
  for (int i = 0; i < kParameters; ++i) {
    if (!read_plain(arguments[2 + i], &parameters[i]) || !parameters[i].is(Storage::kFloat32)) return not_for_it();
  }
  const auto& [embedding, weight1, bias1, weight2, bias2] = parameters;
  const int64_t examples = ids.sizes[0], length = ids.sizes[1];
  const ModelShape shape{embedding.sizes[0], length, embedding.sizes[1], weight1.sizes[0], false};
  int64_t inputs = 0;
  if (ids.dims != 2 || ids.is_floating || target.is_floating || !target.has_shape(1, &examples) ||
      !embedding.is_matrix(shape.vocab_size, shape.embedding_dim) ||
      __builtin_mul_overflow(length, shape.embedding_dim, &inputs) || !weight1.is_matrix(shape.hidden_dim, inputs) ||
      !bias1.is_vector(shape.hidden_dim) || !weight2.is_matrix(shape.vocab_size, shape.hidden_dim) ||
      !bias2.is_vector(shape.vocab_size) || examples >= INT32_MAX || shape.vocab_size > INT32_MAX ||
      cpu::mlp_cross_entropy_in_layers(shape, examples)) {
    return not_for_it();
  }
  return or_none([&]() -> PyObject* {
    const Workspace<int32_t> tokens(examples * length), distinct(examples * length), context(examples),
        table(number_contexts_table_size(examples));
    const TokenIds token_ids{ids.data, ids.integer, examples, length, ids.strides[0], ids.strides[1]};
    if (!read_tokens(token_ids, shape.vocab_size, tokens.data())) return nullptr;
    const Values<int64_t> classes(target);
    const Workspace<Example> pairs(examples);
    const int64_t contexts =
        number_contexts(tokens.data(), examples, length, table.data(), context.data(), distinct.data());
    for (int64_t n = 0; n < examples; ++n) {
      const int64_t y = classes.data()[n];
      const bool is_ignored = y == options.ignore_index;
      if (!is_ignored && (y < 0 || y >= shape.vocab_size)) return nullptr;
      pairs.data()[n] = {context.data()[n], is_ignored ? kIgnored : static_cast<int32_t>(y)};
    }

    const PyReference loss = empty(Storage::kFloat32, 0, nullptr);
    PyReference gradients[kParameters];
    const float* values[kParameters];
    float* gradient_values[kParameters];
    for (int i = 0; i < kParameters; ++i) {
      values[i] = static_cast<const float*>(parameters[i].data);
      if (!make_gradient(parameters[i], true, &gradients[i], &gradient_values[i])) return nullptr;
    }
    if (loss == nullptr) return nullptr;
    cpu::MlpCrossEntropy<float> problem;
    problem.contexts = {length, shape.vocab_size, contexts, distinct.data()};
    problem.pairs = pairs.data();
    problem.examples = examples;
    problem.parameters = values;
    problem.mean = options.reduction == Reduction::kMean;
    problem.gradients = gradient_values;
    cpu::MlpModel<float> model(shape, option_as<float>("softcap", options.softcap));
    *static_cast<float*>(memory_of(loss)) = static_cast<float>(cpu::mlp_cross_entropy(problem, &model));
    took_branch("mlp_cross_entropy_forward/direct");
    return PyTuple_Pack(1 + kParameters, loss.get(), gradients[0].get(), gradients[1].get(), gradients[2].get(),
                        gradients[3].get(), gradients[4].get());
  });
}

}  // namespace charlm
