#include "bindings/direct_calls.h"

#include <tuple>

#include "bindings/branches.h"
#include "bindings/cross_entropy_options.h"
#include "bindings/plain_tensor.h"
#include "bindings/training.h"
#include "kernels/linear_cross_entropy.h"
#include "kernels/mlp_cross_entropy.h"
#include "kernels/token_index.h"

namespace charlm {
namespace {

using Type = PlainTensor::Type;

// Of the tuple charlm.ops._arguments.LossOptions.
bool read_options(PyObject* tuple, CrossEntropyOptions* options) {
  const auto integer = [&](int i) { return PyLong_AsLongLong(PyTuple_GetItem(tuple, i)); };
  const auto number = [&](int i) { return PyFloat_AsDouble(PyTuple_GetItem(tuple, i)); };
  const auto found = std::make_tuple(integer(0), integer(1), number(2), number(3), number(4));
  if (PyErr_Occurred() != nullptr) return false;
  try {
    *options = std::apply(cross_entropy_options, found);
  } catch (const std::invalid_argument&) {
    return false;
  }
  return options->reduction != Reduction::kNone;
}

PyObject* not_for_it() {
  PyErr_Clear();
  Py_RETURN_NONE;
}
PyReference none() {
  Py_INCREF(Py_None);
  return PyReference(Py_None);
}

// What an error, of memory for instance, ends: the op comes to the same and says so.
template <typename Function>
PyObject* or_none(const Function& function) {
  try {
    PyObject* result = function();
    return result != nullptr ? result : not_for_it();
  } catch (const std::exception&) {
    return not_for_it();
  }
}

ClassMatrix rows_of(void* data, Type type, int64_t classes) {
  const Storage storage = type == Type::kBFloat16  ? Storage::kBFloat16
                          : type == Type::kFloat16 ? Storage::kFloat16
                                                   : Storage::kFloat32;
  return {.data = data, .storage = storage, .outer_stride = classes};
}

// A tensor for a gradient, None where it is not wanted, and its memory. False with an error set.
bool make_gradient(PyObject* like, bool wanted, PyReference* tensor, float** data) {
  *tensor = wanted ? empty_like(like) : none();
  if (*tensor == nullptr) return false;
  *data = wanted ? static_cast<float*>(memory_of(*tensor)) : nullptr;
  return !wanted || *data != nullptr;
}

// A loss over rows of so many classes, whose total goes to a new scalar.
class Loss {
 public:
  Loss(const PlainTensor& target, int64_t classes, const CrossEntropyOptions& options, Type type = Type::kFloat32)
      : type_(type), tensor_(empty_scalar(type)), rows_(target.sizes[0]) {
    problem.rows = target.sizes[0];
    problem.classes = classes;
    problem.target = static_cast<const int64_t*>(target.data);
    problem.ignore_index = options.ignore_index;
    problem.label_smoothing = option_as<float>("label_smoothing", options.label_smoothing);
    problem.softcap = option_as<float>("softcap", options.softcap);
    problem.z_loss = option_as<float>("z_loss", options.z_loss);
    problem.loss = rows_.data();
    denominator_ = options.reduction == Reduction::kMean ? cpu::mean_denominator(problem) : 1;
    problem.scale = 1 / denominator_;
  }
  bool is_possible() const { return tensor_ != nullptr && cpu::first_bad_target(problem) < 0; }
  // For a problem whose row losses are known.
  PyObject* total() const {
    const auto total = static_cast<float>(cpu::total_loss(problem) / denominator_);
    if (type_ == Type::kFloat32) {
      *static_cast<float*>(memory_of(tensor_)) = total;
    } else {
      *static_cast<BFloat16*>(memory_of(tensor_)) = nearest_bfloat16(total);
    }
    return tensor_.get();
  }

  CrossEntropy<float> problem;

 private:
  Type type_;
  PyReference tensor_;
  Workspace<float> rows_;
  float denominator_;
};

}  // namespace

PyObject* cross_entropy_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  PlainTensor input, target;
  CrossEntropyOptions options;
  if (count != 5 || !read_plain(arguments[0], &input) || !read_plain(arguments[1], &target) ||
      !read_options(arguments[2], &options) || input.dims != 2 || input.type == Type::kInteger ||
      input.type == Type::kFloat64 || !target.is_int64() || !target.is_vector(input.sizes[0])) {
    return not_for_it();
  }
  return or_none([&]() -> PyObject* {
    const bool wants_gradient = arguments[3] == Py_True;
    const bool rounds = arguments[4] == Py_True && input.type != Type::kFloat32;
    if (rounds && input.type != Type::kBFloat16) return nullptr;
    Loss loss(target, input.sizes[1], options, rounds ? Type::kBFloat16 : Type::kFloat32);
    if (!loss.is_possible()) return nullptr;
    loss.problem.input = rows_of(input.data, input.type, input.sizes[1]);
    const PyReference gradient = wants_gradient ? empty_like(input.object) : none();
    // The log-probabilities of the targets, which a second derivative needs beside a gradient in bfloat16.
    const PyReference kept = wants_gradient && input.type == Type::kBFloat16 ? empty_vector(input.sizes[0]) : none();
    if (gradient == nullptr || kept == nullptr) return nullptr;
    if (kept.get() != Py_None) loss.problem.target_log_probability = static_cast<float*>(memory_of(kept));
    if (wants_gradient) loss.problem.input_gradient = rows_of(memory_of(gradient), input.type, input.sizes[1]);
    cpu::cross_entropy(loss.problem);
    took_branch("cross_entropy_forward/direct");
    return PyTuple_Pack(3, loss.total(), kept.get(), gradient.get());
  });
}

PyObject* is_one(PyObject*, PyObject* scale) {
  PlainTensor tensor;
  if (!read_plain(scale, &tensor) || tensor.dims != 0) Py_RETURN_FALSE;
  switch (tensor.type) {
    case Type::kFloat32:
      return PyBool_FromLong(*static_cast<const float*>(tensor.data) == 1);
    case Type::kFloat64:
      return PyBool_FromLong(*static_cast<const double*>(tensor.data) == 1);
    case Type::kBFloat16:
      return PyBool_FromLong(*static_cast<const uint16_t*>(tensor.data) == 0x3f80);
    default:
      Py_RETURN_FALSE;
  }
}

PyObject* linear_cross_entropy_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  PlainTensor input, weight, target, bias;
  CrossEntropyOptions options;
  if (count != 8 || !read_plain(arguments[0], &input) || !read_plain(arguments[1], &weight) ||
      !read_plain(arguments[2], &target) || !read_options(arguments[4], &options)) {
    return not_for_it();
  }
  const bool has_bias = arguments[3] != Py_None;
  const int64_t rows = input.sizes[0], features = input.sizes[1], classes = weight.sizes[0];
  if (input.dims != 2 || input.type != Type::kFloat32 || weight.type != Type::kFloat32 ||
      !weight.is_matrix(classes, features) || !target.is_int64() || !target.is_vector(rows) ||
      (has_bias && (!read_plain(arguments[3], &bias) || bias.type != Type::kFloat32 || !bias.is_vector(classes)))) {
    return not_for_it();
  }
  return or_none([&]() -> PyObject* {
    Loss loss(target, classes, options);
    if (!loss.is_possible()) return nullptr;
    cpu::LinearCrossEntropy<float> problem{.input = Matrix(input.data, Storage::kFloat32, rows, features),
                                           .weight = Matrix(weight.data, Storage::kFloat32, classes, features),
                                           .bias = static_cast<const float*>(bias.data),
                                           .loss = loss.problem};
    PyReference of_input, of_weight, of_bias;
    if (!make_gradient(input.object, arguments[5] == Py_True, &of_input, &problem.input_gradient) ||
        !make_gradient(weight.object, arguments[6] == Py_True, &of_weight, &problem.weight_gradient) ||
        !make_gradient(bias.object, has_bias && arguments[7] == Py_True, &of_bias, &problem.bias_gradient)) {
      return nullptr;
    }
    cpu::linear_cross_entropy(problem);
    took_branch("linear_cross_entropy_forward/direct");
    return PyTuple_Pack(4, loss.total(), of_input.get(), of_weight.get(), of_bias.get());
  });
}

PyObject* mlp_cross_entropy_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  constexpr int kParameters = 5;
  PlainTensor ids, target, parameters[kParameters];
  CrossEntropyOptions options;
  if (count != 8 || !read_plain(arguments[0], &ids) || !read_plain(arguments[1], &target) ||
      !read_options(arguments[7], &options)) {
    return not_for_it();
  }
  for (int i = 0; i < kParameters; ++i) {
    if (!read_plain(arguments[2 + i], &parameters[i]) || parameters[i].type != Type::kFloat32) return not_for_it();
  }
  const auto& [embedding, weight1, bias1, weight2, bias2] = parameters;
  const int64_t examples = ids.sizes[0], length = ids.sizes[1];
  const ModelShape shape{embedding.sizes[0], length, embedding.sizes[1], weight1.sizes[0], false};
  int64_t inputs = 0;
  if (ids.dims != 2 || ids.type != Type::kInteger || target.type != Type::kInteger || !target.is_vector(examples) ||
      embedding.dims != 2 || __builtin_mul_overflow(length, shape.embedding_dim, &inputs) ||
      !weight1.is_matrix(shape.hidden_dim, inputs) || !bias1.is_vector(shape.hidden_dim) ||
      !weight2.is_matrix(shape.vocab_size, shape.hidden_dim) || !bias2.is_vector(shape.vocab_size) ||
      examples >= INT32_MAX || shape.vocab_size > INT32_MAX || cpu::mlp_cross_entropy_in_layers(shape, examples)) {
    return not_for_it();
  }
  return or_none([&]() -> PyObject* {
    const Workspace<int32_t> tokens(examples * length), distinct(examples * length), context(examples),
        table(number_contexts_table_size(examples));
    const TokenIds token_ids{ids.data, ids.integer, examples, length, length},
        classes{target.data, target.integer, examples, 1, 1};
    if (!read_tokens(token_ids, shape.vocab_size, tokens.data())) return nullptr;
    const Workspace<Example> pairs(examples);
    const int64_t contexts =
        number_contexts(tokens.data(), examples, length, table.data(), context.data(), distinct.data());
    for (int64_t n = 0; n < examples; ++n) {
      const int64_t y = id_at(classes, n, 0);
      const bool is_ignored = y == options.ignore_index;
      if (!is_ignored && (y < 0 || y >= shape.vocab_size)) return nullptr;
      pairs.data()[n] = {context.data()[n], is_ignored ? kIgnored : static_cast<int32_t>(y)};
    }

    const PyReference loss = empty_scalar(Type::kFloat32);
    PyReference gradients[kParameters];
    const float* values[kParameters];
    float* gradient_values[kParameters];
    for (int i = 0; i < kParameters; ++i) {
      values[i] = static_cast<const float*>(parameters[i].data);
      if (!make_gradient(parameters[i].object, true, &gradients[i], &gradient_values[i])) return nullptr;
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
