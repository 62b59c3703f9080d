#include "bindings/direct_calls.h"

#include "bindings/branches.h"
#include "bindings/plain_tensor.h"
#include "kernels/cross_entropy.h"
#include "kernels/host_library.h"

namespace charlm {
namespace {

struct LossOptions {
  int64_t ignore_index = 0, reduction = 0;
  double label_smoothing = 0, softcap = 0, z_loss = 0;
};

// Of the tuple charlm.ops._arguments.LossOptions, which is checked.
bool read_options(PyObject* tuple, LossOptions* options) {
  const auto integer = [&](int i) { return PyLong_AsLongLong(PyTuple_GetItem(tuple, i)); };
  const auto number = [&](int i) { return PyFloat_AsDouble(PyTuple_GetItem(tuple, i)); };
  *options = {integer(0), integer(1), number(2), number(3), number(4)};
  return PyErr_Occurred() == nullptr;
}

PyObject* new_none() {
  Py_INCREF(Py_None);
  return Py_None;
}

PyObject* not_for_it() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

Storage storage_of(PlainTensor::Type type) {
  return type == PlainTensor::Type::kBFloat16 ? Storage::kBFloat16
         : type == PlainTensor::Type::kFloat16 ? Storage::kFloat16
                                               : Storage::kFloat32;
}

ClassMatrix rows_of(void* data, PlainTensor::Type type, int64_t classes) {
  return {.data = data, .storage = storage_of(type), .outer_stride = classes};
}

}  // namespace

PyObject* cross_entropy_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  PlainTensor input, target;
  LossOptions options;
  if (count != 4 || !read_plain(arguments[0], &input) || !read_plain(arguments[1], &target) ||
      !read_options(arguments[2], &options)) {
    return not_for_it();
  }
  constexpr int64_t kMean = 1, kNone = 0;
  const bool is_float = input.type != PlainTensor::Type::kInt64 && input.type != PlainTensor::Type::kFloat64;
  if (!is_float || input.dims != 2 || target.type != PlainTensor::Type::kInt64 ||
      !target.is_vector(input.sizes[0]) || options.reduction == kNone) {
    return not_for_it();
  }
  const bool wants_gradient = arguments[3] == Py_True;
  try {
    CrossEntropy<float> problem;
    problem.rows = input.sizes[0];
    problem.classes = input.sizes[1];
    problem.input = rows_of(input.data, input.type, problem.classes);
    problem.target = static_cast<const int64_t*>(target.data);
    problem.ignore_index = options.ignore_index;
    problem.label_smoothing = static_cast<float>(options.label_smoothing);
    problem.softcap = static_cast<float>(options.softcap);
    problem.z_loss = static_cast<float>(options.z_loss);
    if (cpu::first_bad_target(problem) >= 0 || (options.softcap != 0 && !(problem.softcap > 0))) return not_for_it();
    const PyReference loss = empty_scalar();
    const PyReference gradient = wants_gradient ? empty_like(input.object) : PyReference(new_none());
    if (loss == nullptr || gradient == nullptr) return not_for_it();
    if (wants_gradient) problem.input_gradient = rows_of(memory_of(gradient), input.type, problem.classes);
    const Workspace<float> losses(problem.rows);
    problem.loss = losses.data();
    const float denominator = options.reduction == kMean ? cpu::mean_denominator(problem) : 1;
    problem.scale = 1 / denominator;
    cpu::cross_entropy(problem);
    *static_cast<float*>(memory_of(loss)) = static_cast<float>(cpu::total_loss(problem) / denominator);
    took_branch("cross_entropy/direct");
    return PyTuple_Pack(2, loss.get(), gradient.get());
  } catch (const std::exception&) {
    return not_for_it();
  }
}

}  // namespace charlm
