// The Python module charlm._C. Importing it registers the ops; its functions are for `charlm info`, bug reports and
// tests. Limited API: one binary for every Python from 3.10.
#include <Python.h>

#include <climits>
#include <cstring>
#include <exception>

#include "bindings/branches.h"
#include "bindings/direct_calls.h"
#include "bindings/gpu_support.h"
#include "kernels/isa.h"

namespace charlm {
namespace {

PyObject* instruction_set(PyObject*, PyObject*) {
  return PyUnicode_FromString(cpu::instruction_set_name(cpu::instruction_set()));
}

PyObject* instruction_sets(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (int i = 0; names != nullptr && i < cpu::kInstructionSets; ++i) {
    const auto set = static_cast<cpu::InstructionSet>(i);
    if (!cpu::machine_supports(set)) continue;
    PyObject* name = PyUnicode_FromString(cpu::instruction_set_name(set));
    if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* set_instruction_set(PyObject*, PyObject* argument) {
  if (argument == Py_None) {
    cpu::unset_instruction_set();
    Py_RETURN_NONE;
  }
  if (!PyUnicode_Check(argument)) {
    return PyErr_Format(PyExc_TypeError, "the instruction set must be a str or None, got %R", argument);
  }
  const char* wanted = PyUnicode_AsUTF8AndSize(argument, nullptr);
  if (wanted == nullptr) return nullptr;
  for (int i = 0; i < cpu::kInstructionSets; ++i) {
    const auto set = static_cast<cpu::InstructionSet>(i);
    if (std::strcmp(wanted, cpu::instruction_set_name(set)) == 0 && cpu::set_instruction_set(set)) Py_RETURN_NONE;
  }
  PyObject* names = instruction_sets(nullptr, nullptr);
  if (names == nullptr) return nullptr;
  PyErr_Format(PyExc_ValueError, "the instruction set must be one that this machine can run, of %R, got %R", names,
               argument);
  Py_DECREF(names);
  return nullptr;
}

PyObject* last_branch_name(PyObject*, PyObject*) { return PyUnicode_FromString(last_branch()); }

PyObject* build_info(PyObject*, PyObject*) {
#if defined(__VERSION__)
  const char* compiler = __VERSION__;
#else
  const char* compiler = "unknown";
#endif
  return Py_BuildValue("{s:s,s:k,s:z}", "compiler", compiler, "torch_target_version",
                       static_cast<unsigned long>(TORCH_TARGET_VERSION >> 48), "cuda", cuda_architectures());
}

PyObject* why_no_kernels_on(PyObject*, PyObject* argument) {
  const long device = PyLong_AsLong(argument);
  if (device == -1 && PyErr_Occurred() != nullptr) return nullptr;
  if (device < 0 || device > INT_MAX) {
    return PyErr_Format(PyExc_ValueError, "the device must be the index of a CUDA device, got %R", argument);
  }
  try {
    const std::optional<std::string> why = why_no_kernels(static_cast<int>(device));
    if (!why.has_value()) Py_RETURN_NONE;
    return PyUnicode_FromString(why->c_str());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* fits_in_one_launch(PyObject*, PyObject* arguments) {
  int device = 0, direct = 0, is_float64 = 0;
  ModelShape shape;
  long long sizes[4];
  if (!PyArg_ParseTuple(arguments, "iLLLLpp", &device, &sizes[0], &sizes[1], &sizes[2], &sizes[3], &direct,
                        &is_float64)) {
    return nullptr;
  }
  shape.vocab_size = sizes[0];
  shape.context_length = sizes[1];
  shape.embedding_dim = sizes[2];
  shape.hidden_dim = sizes[3];
  shape.direct = direct != 0;
  try {
    return PyBool_FromLong(trains_in_one_launch(device, shape, is_float64 != 0));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// As PyMethodDef wants functions with METH_FASTCALL.
PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr const char* kDirect = "The op, for small calls: see bindings/direct_calls.h; None where it is not for it.";

PyMethodDef methods[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "Name of the instruction set the CPU kernels run on."},
    {"instruction_sets", instruction_sets, METH_NOARGS, "Names of those this machine can run, the best last."},
    {"set_instruction_set", set_instruction_set, METH_O,
     "Run the CPU kernels on the named set from now on; None: on the best, or the fastest for tiny calls."},
    {"last_branch", last_branch_name, METH_NOARGS, "Which branch the last op took, '<op>/<branch>'."},
    {"build_info", build_info, METH_NOARGS, "Compiler, oldest torch, and the GPUs this binary has kernels for."},
    {"why_no_kernels", why_no_kernels_on, METH_O,
     "Why the ops cannot run on the CUDA device of an index, and what to do, in one sentence; None where they can."},
    {"trains_in_one_launch", fits_in_one_launch, METH_VARARGS,
     "Whether a CUDA device makes many steps of a model in one launch: device index, vocab_size, context_length, "
     "embedding_dim, hidden_dim (0 of a bigram), direct, float64."},
    {"cross_entropy_forward", fast(cross_entropy_forward_directly), METH_FASTCALL, kDirect},
    {"cross_entropy_backward", fast(cross_entropy_backward_directly), METH_FASTCALL, kDirect},
    {"linear_cross_entropy_forward", fast(linear_cross_entropy_forward_directly), METH_FASTCALL, kDirect},
    {"linear_cross_entropy_backward", fast(linear_cross_entropy_backward_directly), METH_FASTCALL, kDirect},
    {"mlp_cross_entropy_forward", fast(mlp_cross_entropy_forward_directly), METH_FASTCALL, kDirect},
    {"scale_gradients", fast(scale_gradients_directly), METH_FASTCALL, "Whether gradients are now times a scale."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace charlm

PyMODINIT_FUNC PyInit__C() {
  if (!charlm::cpu::machine_supports_any()) {
    return PyErr_Format(PyExc_ImportError, "it is compiled for processors with %s, which this one has not",
                        charlm::cpu::instruction_set_name(charlm::cpu::instruction_set()));
  }
  return PyModule_Create(&charlm::module);
}
