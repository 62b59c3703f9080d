// Functions of the Python module for calls on small, plain tensors that nothing but the caller sees: no dispatcher, no
// mode, no trace. Each returns None where it is not meant for its arguments or finds a fault in them: the op of the same
// name then serves the call, or says what is wrong.
#pragma once

#include <Python.h>

namespace charlm {

// (input, target, options, wants_gradient) -> (loss, gradient or None): of class indices, without class weights, the
// mean or the sum; the loss in float32.
PyObject* cross_entropy_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace charlm
