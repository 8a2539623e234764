// What the Python module offers beyond the CPU path.
#pragma once

#include <nanobind/nanobind.h>

namespace fourd {

void bind_cuda(nanobind::module_& m);

}  // namespace fourd
