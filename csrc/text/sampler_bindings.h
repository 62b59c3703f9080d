// Makes charlm._text.Sampler.
#pragma once

#include <pybind11/pybind11.h>

namespace charlm::text {

void bind_sampler(pybind11::module_& module);

}  // namespace charlm::text
