// Makes what reads, counts and encodes texts in charlm._text.
#pragma once

#include <pybind11/pybind11.h>

namespace charlm::text {

void bind_texts(pybind11::module_& module);

}  // namespace charlm::text
