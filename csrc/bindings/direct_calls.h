// Functions of the Python module for small calls on plain tensors that nothing but the caller sees: no dispatcher, no
// mode, no trace. Each returns None where it is not meant for its arguments or finds a fault in them: the op of the
// same name then serves the call, or says what is wrong.
//
// Losses take class indices, no class weights, and the mean or the sum; they are in float32.
#pragma once

#include <Python.h>

namespace charlm {

// (input, target, options, wants_gradient, rounds) -> (loss, log-probabilities of the targets or None, gradient or
// None). In float32, bfloat16 and float16; the second of bfloat16 with a gradient alone, in which the loss may be
// rounded, too.
PyObject* cross_entropy_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (input, linear_weight, target, linear_bias, options, wants_input, wants_weight, wants_bias)
// -> (loss, gradients or None). In float32.
PyObject* linear_cross_entropy_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (ids, target, embedding, weight1, bias1, weight2, bias2, options) -> (loss, gradients of the parameters). In float32,
// with biases.
PyObject* mlp_cross_entropy_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (scale) -> bool: whether it is a plain tensor without dimensions that is 1.
PyObject* is_one(PyObject* module, PyObject* scale);

}  // namespace charlm
