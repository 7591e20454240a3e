// The rows of a torch tensor, read through DLPack's exchange table: no attribute of the tensor is looked
// up, which would cost more than encoding a small one.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.hpp"

namespace asys::simd {

// Remember where torch keeps its table. A torch without one has no compiled kernels.
void find_exchange(PyObject* tensor_type);

// False: not a CPU tensor, an unknown element, or a last dimension with a stride; no error is set.
bool view_rows(PyObject* tensor, Rows& rows, Kind& kind);

}  // namespace asys::simd
