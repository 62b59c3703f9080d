// Functions of the Python module for small calls on plain tensors that nothing but the caller sees: no dispatcher, no
// mode, no trace. Each returns None where it is not meant for its arguments or finds a fault in them: the op of the
// same name then serves the call, or says what is wrong.
#pragma once

#include <Python.h>

namespace charlm {

// (input, target, weight, options, keeps_lse, wants_gradient, rounds) -> (loss, what is kept of it, gradient or None).
// Kept is what backward needs: lse, as in schemas.cpp, or, of a gradient in bfloat16, the log-probabilities of the
// targets; otherwise None. The loss is in the dtype computed in, or rounded to that of the input.
PyObject* cross_entropy_forward_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (grad_output, input, target, weight, lse, options) -> gradient of the input.
PyObject* cross_entropy_backward_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (input, linear_weight, target, linear_bias, weight, options, wants_input, wants_weight, wants_bias, keeps_lse)
// -> (loss, lse or None, gradients or None). In float32 and float64, of class indices.
PyObject* linear_cross_entropy_forward_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (grad_output, input, linear_weight, target, linear_bias, weight, lse, options, wants_input, wants_weight, wants_bias)
// -> (gradients or None, of the target always None).
PyObject* linear_cross_entropy_backward_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (ids, target, embedding, weight1, bias1, weight2, bias2, options) -> (loss, gradients of the parameters). In float32,
// with biases, of the mean or the sum.
PyObject* mlp_cross_entropy_forward_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

// (gradients, scale, target, ignore_index, most) -> bool: whether the gradients are now times the scale: where it is 1,
// or together they are at most so many numbers. The scale is one number, or one a row of a single gradient (C,), (N, C)
// or (N, C, d1); rows whose target is ignored stay 0.
PyObject* scale_gradients_directly(PyObject* module, PyObject* const* arguments, Py_ssize_t count);

}  // namespace charlm
