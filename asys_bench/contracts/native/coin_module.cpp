// The Python module `_coin`: `toss` for the hooks that are no compiled call. Hand-written, because a
// binding library takes longer to read five numbers than the hash takes.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "coin.hpp"

namespace {

// (key, (host_step, weights_version, microbatch, ...), call_index), numbers modulo 2^64.
PyObject* toss(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyTuple_Check(args[1]) || PyTuple_GET_SIZE(args[1]) < 3) {
    PyErr_SetString(PyExc_TypeError, "toss takes a key, the tags of a call and its index");
    return nullptr;
  }
  std::uint64_t numbers[5];
  PyObject* const given[] = {args[0], PyTuple_GET_ITEM(args[1], 0), PyTuple_GET_ITEM(args[1], 1),
                             PyTuple_GET_ITEM(args[1], 2), args[2]};
  for (int i = 0; i < 5; ++i) {
    numbers[i] = PyLong_AsUnsignedLongLongMask(given[i]);
    if (numbers[i] == ~std::uint64_t{0} && PyErr_Occurred() != nullptr) return nullptr;
  }
  return PyFloat_FromDouble(
      asys::coin::toss(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]));
}

PyMethodDef methods[] = {
    {"toss", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(toss)), METH_FASTCALL,
     "toss(key, tags, call_index): u in [0, 1); contracts/coin.py is its reference."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_coin", "The sampling coin.", 0, methods,
                      nullptr,               nullptr, nullptr,              nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__coin() { return PyModule_Create(&module); }
