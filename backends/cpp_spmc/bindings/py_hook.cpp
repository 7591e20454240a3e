// The Python type `HookCall`: base of classes of forward hooks whose calls are compiled.
//
// Such a class keeps its own `__call__`, which is what torch.compile traces; `take_calls` puts the
// function below in the place that the interpreter calls. Without a Python frame a hook costs 2 us
// less after the host's own work has emptied the caches. What it does not know goes to `__call__`.
#include <cstddef>

#include "py_capture.hpp"

#include <structmember.h>

namespace spmc::py {
namespace {

struct HookObject {
  PyObject_HEAD
  PyObject* direct;  // a DirectCapture; nullptr until bound
  PyObject* phase;   // what module.training must be; nullptr: anything
};

PyTypeObject* hook_type = nullptr;
PyObject *training_name = nullptr, *otherwise_name = nullptr, *call_name = nullptr;

// kAccepted, kRefused or kNotMine.
int capture_in_phase(const HookObject& self, PyObject* module, PyObject* output) {
  if (self.phase == nullptr) return capture_directly(self.direct, output);
  PyObject* training = PyObject_GetAttr(module, training_name);
  const bool failed = training == nullptr, in_phase = training == self.phase;
  Py_XDECREF(training);
  if (failed) {
    PyErr_Clear();
    return kNotMine;
  }
  return in_phase ? capture_directly(self.direct, output) : skip_directly(self.direct);
}

// (module, args, output)
PyObject* call_hook(PyObject* object, PyObject* args, PyObject* keywords) {
  const auto* self = reinterpret_cast<HookObject*>(object);
  const bool plain = PyTuple_GET_SIZE(args) == 3 &&
                     (keywords == nullptr || PyDict_GET_SIZE(keywords) == 0);
  if (self->direct == nullptr || !plain) {
    PyObject* function = PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object)), call_name);
    if (function == nullptr) return nullptr;
    PyObject* bound = PyMethod_New(function, object);
    Py_DECREF(function);
    if (bound == nullptr) return nullptr;
    PyObject* result = PyObject_Call(bound, args, keywords);
    Py_DECREF(bound);
    return result;
  }
  PyObject *module = PyTuple_GET_ITEM(args, 0), *output = PyTuple_GET_ITEM(args, 2);
  const int outcome = capture_in_phase(*self, module, output);
  if (outcome == kAccepted) Py_RETURN_NONE;
  PyObject* number = PyLong_FromLong(outcome);
  if (number == nullptr) return nullptr;
  PyObject* result =
      PyObject_CallMethodObjArgs(object, otherwise_name, number, module, output, nullptr);
  Py_DECREF(number);
  return result;
}

// (direct, phase)
PyObject* bind(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !is_direct_capture(args[0]) ||
      (args[1] != Py_None && args[1] != Py_True && args[1] != Py_False)) {
    PyErr_SetString(PyExc_TypeError, "needs a DirectCapture and a phase: None, True or False");
    return nullptr;
  }
  auto* self = reinterpret_cast<HookObject*>(object);
  Py_INCREF(args[0]);
  Py_XSETREF(self->direct, args[0]);
  self->phase = args[1] == Py_None ? nullptr : args[1];  // True and False live for ever
  Py_RETURN_NONE;
}

void hook_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  Py_XDECREF(reinterpret_cast<HookObject*>(object)->direct);
  type->tp_free(object);
  Py_DECREF(type);
}

// (class)
PyObject* take_calls(PyObject*, PyObject* given) {
  auto* type = reinterpret_cast<PyTypeObject*>(given);
  if (!PyType_Check(given) || type == hook_type || !PyType_IsSubtype(type, hook_type)) {
    PyErr_SetString(PyExc_TypeError, "needs a subclass of HookCall");
    return nullptr;
  }
  type->tp_call = call_hook;
  PyType_Modified(type);
  Py_RETURN_NONE;
}

PyMethodDef hook_methods[] = {
    {"bind", as_c(bind), METH_FASTCALL, nullptr},
    {"take_calls", take_calls, METH_O | METH_STATIC, nullptr},
    {}};
PyType_Slot hook_slots[] = {{Py_tp_methods, hook_methods},
                            {Py_tp_dealloc, reinterpret_cast<void*>(hook_dealloc)},
                            {0, nullptr}};
PyType_Spec hook_spec = {"asys_bench.backends.cpp_spmc._spmc.HookCall", sizeof(HookObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, hook_slots};

}  // namespace

bool add_hook_type(PyObject* module) {
  training_name = PyUnicode_InternFromString("training");
  otherwise_name = PyUnicode_InternFromString("otherwise");
  call_name = PyUnicode_InternFromString("__call__");
  hook_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&hook_spec));
  return training_name != nullptr && otherwise_name != nullptr && call_name != nullptr &&
         hook_type != nullptr && PyModule_AddType(module, hook_type) == 0;
}

}  // namespace spmc::py
