// The Python module `_steps`: what a host pays for at each of its steps, where nothing but the usual is to
// be done. Between two steps a model drives this code out of the caches, and five Python functions are some
// hundred cache lines to fetch again. What is unusual is handed to the Python method that it stands for; those
// methods (`StepClock.step`, `StepClock.step_to`, `RolloutLabels.stepped`) are the reference.
//
// Attributes are read where the class keeps them: they are its __slots__, whose places do not change.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <time.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

// A place of an object for an attribute in __slots__.
struct Place {
  const char* name;
  Py_ssize_t offset = -1;

  PyObject*& in(PyObject* self) const {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(self) + offset);
  }
  // Takes the reference.
  void set(PyObject* self, PyObject* value) const {
    PyObject* before = in(self);
    in(self) = value;
    Py_XDECREF(before);
  }
  void share(PyObject* self, PyObject* value) const { set(self, Py_NewRef(value)); }

  bool find(PyObject* type) {
    PyObject* found = PyObject_GetAttrString(type, name);
    if (found == nullptr) return false;
    const bool is_slot = Py_TYPE(found) == &PyMemberDescr_Type;
    if (is_slot) offset = reinterpret_cast<PyMemberDescrObject*>(found)->d_member->offset;
    else PyErr_Format(PyExc_TypeError, "%s is not in __slots__", name);
    Py_DECREF(found);
    return is_slot;
  }
};

template <class Places>
bool find_all(PyObject* type, Places& places) {
  for (Place* place : places)
    if (!place->find(type)) return false;
  return true;
}

// ---- the step clock

Place lock{"lock"}, counting{"counting"}, host_step{"host_step"}, home{"_home"}, forwards{"_forwards"},
    microbatch{"_microbatch"}, moment{"_moment"}, serials{"_serials"}, now_serial{"_now_serial"},
    serial{"serial"}, version{"weights_version"}, position{"_token_position"}, now{"_now"}, tags{"tags"},
    owner{"owner"}, open_calls{"_open"}, buffer{"_buffer"}, page{"_page"}, steps_cell{"_steps_cell"},
    alarm_step{"_alarm_step"}, each_step{"each_step"}, rounds{"rounds"};
Place* const kClock[] = {&lock, &counting, &host_step, &home, &forwards, &microbatch, &moment, &serials,
                         &now_serial, &serial, &version, &position, &now, &tags, &owner, &open_calls,
                         &buffer, &page, &steps_cell, &alarm_step, &each_step, &rounds};

PyObject *moment_type = nullptr, *zero = nullptr;
PyObject *acquire = nullptr, *release = nullptr, *advance_name = nullptr, *after_name = nullptr;
Py_ssize_t heartbeat_cell = 0, ahead_cell = 0;
constexpr Py_ssize_t kShown = 7;  // cells of `CLOCK_*` up to and with TOSSED

bool is_none(const Place& place, PyObject* self) { return place.in(self) == Py_None; }

// `_advance` of a clock whose lock is held and that no call is open on.
bool advance_alone(PyObject* self, PyObject* step) {
  const unsigned long ident = PyThread_get_thread_ident();
  const std::int64_t cells[kShown] = {PyLong_AsLongLong(serials.in(self)) + 1,
                                      PyLong_AsLongLong(step),
                                      PyLong_AsLongLong(version.in(self)),
                                      0,
                                      PyLong_AsLongLong(position.in(self)),
                                      static_cast<std::int64_t>(ident),
                                      0};
  if (PyErr_Occurred() != nullptr) return false;
  PyObject* number = PyLong_FromLongLong(cells[0]);
  PyObject* fresh = PyObject_CallNoArgs(moment_type);
  PyObject* seen = PyTuple_Pack(4, step, version.in(self), zero, position.in(self));
  PyObject* mine = PyLong_AsUnsignedLongMask(home.in(self)) == ident ? Py_NewRef(home.in(self))
                                                                    : PyLong_FromUnsignedLong(ident);
  if (number == nullptr || fresh == nullptr || seen == nullptr || mine == nullptr) {
    for (PyObject* made : {number, fresh, seen, mine}) Py_XDECREF(made);
    return false;
  }
  host_step.share(self, step);
  forwards.share(self, zero);
  microbatch.share(self, zero);
  moment.set(self, fresh);
  serials.share(self, number);
  now_serial.share(self, number);
  now.share(self, seen);
  home.share(self, mine);
  owner.set(self, mine);  // first: a reader takes the tags, then asks whose they are
  tags.set(self, seen);
  serial.set(self, number);
  std::memcpy(PyByteArray_AS_STRING(buffer.in(self)), cells, sizeof cells);
  return true;
}

bool advance(PyObject* self, PyObject* step) {
  if (PyLong_AsLong(open_calls.in(self)) == 0) return advance_alone(self, step);
  PyObject* ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
  if (ident == nullptr) return false;
  home.set(self, ident);
  PyObject* done = PyObject_CallMethodOneArg(self, advance_name, step);
  Py_XDECREF(done);
  return done != nullptr;
}

// Counter and heartbeat (`Slot.tick`). False: the run has ended, and its page with it.
bool tick(PyObject* self, std::int64_t step) {
  Py_buffer view;
  if (PyObject_GetBuffer(page.in(self), &view, PyBUF_WRITABLE) != 0) {
    PyErr_Clear();
    return false;
  }
  auto* cells = static_cast<std::int64_t*>(view.buf);
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  cells[PyLong_AsSsize_t(steps_cell.in(self))] = step;
  cells[heartbeat_cell] = static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
  cells[ahead_cell] = 0;
  PyBuffer_Release(&view);
  return true;
}

PyObject* stepped(PyObject* self, PyObject* step) {
  const std::int64_t number = PyLong_AsLongLong(step);
  if (!tick(self, number)) Py_RETURN_NONE;
  if (number < PyLong_AsLongLong(alarm_step.in(self)) && is_none(each_step, self) && is_none(rounds, self))
    Py_RETURN_NONE;
  return PyObject_CallMethodNoArgs(self, after_name);
}

// The one argument beside self, if there is one: by position or as `name`. Borrowed; nullptr: none, or an error.
PyObject* argument(PyObject* const* args, Py_ssize_t count, PyObject* names, const char* name) {
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (count + named > 2 || count < 1) {
    PyErr_Format(PyExc_TypeError, "takes the clock and %s", name);
    return nullptr;
  }
  if (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), name) != 0) {
    PyErr_Format(PyExc_TypeError, "unexpected keyword argument '%U'", PyTuple_GET_ITEM(names, 0));
    return nullptr;
  }
  return count + named == 2 ? args[1] : nullptr;
}

// Takes the reference to `step`, which may be nullptr (an error). always: also where the clock is there already.
PyObject* go(PyObject* self, PyObject* step, bool always) {
  if (step == nullptr) return nullptr;
  PyObject* held = PyObject_CallMethodNoArgs(lock.in(self), acquire);
  bool is_new = false, ok = held != nullptr;
  if (ok) {
    counting.share(self, Py_False);
    is_new = always || PyObject_RichCompareBool(step, host_step.in(self), Py_EQ) == 0;
    ok = !is_new || advance(self, step);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject* let_go = PyObject_CallMethodNoArgs(lock.in(self), release);
    Py_XDECREF(let_go);
    if (type != nullptr) PyErr_Restore(type, value, trace);
    ok = ok && let_go != nullptr;
    Py_DECREF(held);
  }
  PyObject* done = !ok ? nullptr : is_new ? stepped(self, step) : Py_NewRef(Py_None);
  Py_DECREF(step);
  return done;
}

PyObject* step(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  PyObject* n = argument(args, count, names, "n");
  if (n == nullptr && PyErr_Occurred() != nullptr) return nullptr;
  PyObject* one = n == nullptr ? PyLong_FromLong(1) : PyNumber_Index(n);
  if (one == nullptr) return nullptr;
  PyObject* target = PyNumber_Add(host_step.in(args[0]), one);
  Py_DECREF(one);
  return go(args[0], target, true);
}

PyObject* step_to(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  PyObject* given = argument(args, count, names, "host_step");
  if (given == nullptr) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_TypeError, "step_to takes host_step");
    return nullptr;
  }
  return go(args[0], PyNumber_Index(given), false);
}

// ---- labels of a rollout

Place until{"_until"}, environments{"_environments"}, held_steps{"_held"};
Place* const kLabels[] = {&until, &environments, &held_steps};
PyObject *rewards_key = nullptr, *dones_key = nullptr, *actions_key = nullptr;
PyObject *to_bytes = nullptr, *otherwise = nullptr;

// (step, rewards, dones, actions) as bytes; nullptr: an array is not there, or is none. No error is left.
PyObject* kept(PyObject* self, PyObject* step, PyObject* seen) {
  PyObject* const keys[] = {rewards_key, dones_key, actions_key};
  PyObject* parts[3] = {};
  bool ok = true;
  for (int i = 0; ok && i < 3; ++i) {
    PyObject* array = PyDict_GetItemWithError(seen, keys[i]);
    ok = array != nullptr && array != Py_None &&
         (i != 1 || PyObject_Size(array) == PyLong_AsSsize_t(environments.in(self)));
    if (ok) ok = (parts[i] = PyObject_CallMethodNoArgs(array, to_bytes)) != nullptr;
  }
  PyObject* row = ok ? PyTuple_Pack(4, step, parts[0], parts[1], parts[2]) : nullptr;
  for (PyObject* part : parts) Py_XDECREF(part);
  if (row == nullptr) PyErr_Clear();
  return row;
}

PyObject* labels_stepped(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "stepped takes the labels, a step and what was seen");
    return nullptr;
  }
  PyObject *self = args[0], *step = args[1], *seen = args[2];
  const bool is_usual = PyLong_CheckExact(step) && PyDict_CheckExact(seen) &&
                        PyObject_RichCompareBool(step, until.in(self), Py_LT) == 1;
  PyObject* row = is_usual ? kept(self, step, seen) : nullptr;
  if (row == nullptr) {
    PyErr_Clear();
    return PyObject_CallMethodObjArgs(self, otherwise, step, seen, nullptr);
  }
  const int failed = PyList_Append(held_steps.in(self), row);
  Py_DECREF(row);
  if (failed != 0) return nullptr;
  Py_RETURN_NONE;
}

// ---- how a class gets them

// A method of this function: called with the instance before the arguments.
PyObject* method_of(PyMethodDef* function) {
  PyObject* plain = PyCFunction_New(function, nullptr);
  PyObject* method = plain == nullptr ? nullptr : PyInstanceMethod_New(plain);
  Py_XDECREF(plain);
  return method;
}

template <class Function>
PyCFunction cast(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef step_def{"step", cast(step), METH_FASTCALL | METH_KEYWORDS, "See StepClock.step."};
PyMethodDef step_to_def{"step_to", cast(step_to), METH_FASTCALL | METH_KEYWORDS, "See StepClock.step_to."};
PyMethodDef stepped_def{"stepped", cast(labels_stepped), METH_FASTCALL, "See RolloutLabels.stepped."};

PyObject* clock_methods(PyObject*, PyObject* args) {
  PyObject *type, *moments;
  if (!PyArg_ParseTuple(args, "OOnn", &type, &moments, &heartbeat_cell, &ahead_cell)) return nullptr;
  if (!find_all(type, kClock)) return nullptr;
  Py_XSETREF(moment_type, Py_NewRef(moments));
  PyObject *first = method_of(&step_def), *second = method_of(&step_to_def);
  PyObject* both = first != nullptr && second != nullptr ? PyTuple_Pack(2, first, second) : nullptr;
  Py_XDECREF(first);
  Py_XDECREF(second);
  return both;
}

PyObject* labels_method(PyObject*, PyObject* type) {
  return find_all(type, kLabels) ? method_of(&stepped_def) : nullptr;
}

PyMethodDef functions[] = {
    {"clock_methods", clock_methods, METH_VARARGS,
     "clock_methods(StepClock, its moments, heartbeat cell, ahead cell): step and step_to."},
    {"labels_method", labels_method, METH_O, "labels_method(RolloutLabels): stepped."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_steps", "What a host pays for at each step.", -1, functions,
                      nullptr,               nullptr,  nullptr,                              nullptr};

bool intern_all() {
  const struct {
    PyObject** word;
    const char* text;
  } words[] = {{&acquire, "acquire"},    {&release, "release"}, {&advance_name, "_advance"},
               {&after_name, "_after_step"}, {&rewards_key, "rewards"}, {&dones_key, "dones"},
               {&actions_key, "actions"}, {&to_bytes, "tobytes"}, {&otherwise, "_stepped"}};
  for (const auto& [word, text] : words)
    if ((*word = PyUnicode_InternFromString(text)) == nullptr) return false;
  return (zero = PyLong_FromLong(0)) != nullptr;
}

}  // namespace

PyMODINIT_FUNC PyInit__steps() { return intern_all() ? PyModule_Create(&module) : nullptr; }
