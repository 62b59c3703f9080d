#include "bindings/branches.h"
#include "bindings/direct_calls.h"
#include "bindings/direct_loss.h"

namespace charlm {
namespace {

// Exponentials in double take eight times as long: what is small in float is not for it.
constexpr int64_t kMostDoubles = 1 << 14;

// The arguments but for what is computed in.
struct PlainCrossEntropy {
  PlainTensor input, target;
  PyObject* weight;
  CrossEntropyOptions options;
  bool has_probabilities;
  int64_t row_shape[2];  // of the input, without its class dimension

  // (input, target, weight).
  bool read(PyObject* const* tensors, PyObject* options_object) {
    weight = tensors[2];
    if (!read_plain(tensors[0], &input) || !input.is_floating || input.dims == 0 || !read_plain(tensors[1], &target) ||
        !read_options(options_object, &options) || (input.is(Storage::kFloat64) && input.count > kMostDoubles)) {
      return false;
    }
    row_shape[0] = input.sizes[0];
    row_shape[1] = input.sizes[2];
    has_probabilities = target.is(input.storage) && target.has_shape(input.dims, input.sizes);
    if (has_probabilities) return options.ignore_index < 0;
    const int64_t one = 1;
    const bool is_one_class = input.dims == 1 && input.count > 1 && target.has_shape(1, &one);
    return !target.is_floating && (is_one_class || target.has_shape(input.dims - 1, row_shape));
  }

  template <typename T>
  LossArguments<T> loss_arguments() const {
    return {input.sizes[input.dims == 1 ? 0 : 1], input.dims - 1, row_shape, options};
  }
  // False where a target is no class, or the weights are none.
  template <typename T>
  bool fill(LossArguments<T>* loss) const {
    loss->problem.input = rows_of(input, input.data);
    if (has_probabilities) {
      loss->problem.probabilities = rows_of(target, target.data);
    } else if (!loss->take_classes(target)) {
      return false;
    }
    return loss->take_weight(weight);
  }

  // A new tensor for the gradient of the input; null with an error set.
  PyReference make_gradient(ClassMatrix* matrix) const {
    PyReference gradient = empty_like(input.object);
    PlainTensor tensor = input;  // of a contiguous one all but the memory is the same
    if (gradient == nullptr || (!input.is_contiguous && !read_plain(gradient.get(), &tensor))) return nullptr;
    *matrix = rows_of(tensor, input.is_contiguous ? memory_of(gradient) : tensor.data);
    return matrix->data != nullptr ? std::move(gradient) : nullptr;
  }
};

template <typename T>
PyObject* forward(const PlainCrossEntropy& call, bool keeps_lse, bool wants_gradient, bool rounds) {
  auto loss = call.loss_arguments<T>();
  if (!call.fill(&loss)) return nullptr;
  PyReference gradient = none(), kept = none();
  if (wants_gradient) gradient = call.make_gradient(&loss.problem.input_gradient);
  if (keeps_lse) {
    kept = loss.make_lse();
  } else if (wants_gradient && call.input.storage == Storage::kBFloat16) {
    kept = empty(Storage::kFloat32, 1, &loss.problem.rows);
    if (kept != nullptr) loss.problem.target_log_probability = static_cast<T*>(memory_of(kept));
  }
  const LossResult<T> result(rounds ? call.input.storage : kStorageOf<T>, &loss);
  if (!result.is_possible() || gradient == nullptr || kept == nullptr) return nullptr;
  cpu::cross_entropy(loss.problem);
  took_branch("cross_entropy_forward/direct");
  return PyTuple_Pack(3, result.finished(loss.problem), kept.get(), gradient.get());
}

template <typename T>
PyObject* backward(const PlainCrossEntropy& call, PyObject* grad_output, PyObject* lse) {
  auto loss = call.loss_arguments<T>();
  if (!call.fill(&loss) || !loss.take_lse(lse) || !loss.take_upstream(grad_output)) return nullptr;
  PyReference gradient = call.make_gradient(&loss.problem.input_gradient);
  if (gradient == nullptr) return nullptr;
  cpu::cross_entropy(loss.problem);
  took_branch("cross_entropy_backward/direct");
  return gradient.release();
}

}  // namespace

PyObject* cross_entropy_forward_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  PlainCrossEntropy call;
  if (count != 7 || !call.read(arguments, arguments[3])) return not_for_it();
  const bool keeps_lse = arguments[4] == Py_True, wants_gradient = arguments[5] == Py_True,
             rounds = arguments[6] == Py_True;
  return or_none([&] {
    return call.input.storage == Storage::kFloat64 ? forward<double>(call, keeps_lse, wants_gradient, rounds)
                                                   : forward<float>(call, keeps_lse, wants_gradient, rounds);
  });
}

PyObject* cross_entropy_backward_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  PlainCrossEntropy call;
  if (count != 6 || !call.read(arguments + 1, arguments[5])) return not_for_it();
  return or_none([&] {
    return call.input.storage == Storage::kFloat64 ? backward<double>(call, arguments[0], arguments[4])
                                                   : backward<float>(call, arguments[0], arguments[4]);
  });
}

}  // namespace charlm
