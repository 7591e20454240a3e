// The Python module `_steps`: what a host pays for at each of its steps, where nothing but the usual is to
// be done. Between two steps a model drives this code out of the caches, and five Python functions are some
// hundred cache lines to fetch again. What is unusual is handed to the Python method that it stands for; those
// methods (`StepClock.step`, `step_to` and `weights_updated`, `OptimizerWatch.stepped`, `RolloutLabels.stepped`,
// `ForwardStandIn.__call__`) are the reference.
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
    versions_cell{"_versions_cell"}, alarm_step{"_alarm_step"}, each_step{"each_step"}, rounds{"rounds"},
    moments{"moments"};
Place* const kClock[] = {&lock, &counting, &host_step, &home, &forwards, &microbatch, &moment, &serials,
                         &now_serial, &serial, &version, &position, &now, &tags, &owner, &open_calls,
                         &buffer, &page, &steps_cell, &versions_cell, &alarm_step, &each_step, &rounds,
                         &moments};
Place calls{"calls"}, texts{"texts"};
Place* const kMoment[] = {&calls, &texts};
Place updated_at{"_updated_at"}, versions{"_versions"};
Place* const kMoments[] = {&updated_at, &versions};

PyObject *clock_type = nullptr, *moment_type = nullptr, *moments_type = nullptr;
PyObject *zero = nullptr, *one = nullptr;
PyObject *acquire = nullptr, *release = nullptr, *advance_name = nullptr, *after_name = nullptr,
         *retag_name = nullptr, *updated_name = nullptr;
Py_ssize_t heartbeat_cell = 0, ahead_cell = 0;
constexpr Py_ssize_t kShown = 7;  // cells of `CLOCK_*` up to and with TOSSED

bool is_none(const Place& place, PyObject* self) { return place.in(self) == Py_None; }

// `_retag` of a clock whose lock is held and that no call is open on.
bool retag_alone(PyObject* self) {
  const std::int64_t cells[kShown] = {
      PyLong_AsLongLong(serials.in(self)) + 1, PyLong_AsLongLong(host_step.in(self)),
      PyLong_AsLongLong(version.in(self)),     PyLong_AsLongLong(microbatch.in(self)),
      PyLong_AsLongLong(position.in(self)),
      static_cast<std::int64_t>(PyLong_AsUnsignedLongMask(home.in(self))), 0};
  if (PyErr_Occurred() != nullptr) return false;
  PyObject* number = PyLong_FromLongLong(cells[0]);
  PyObject* seen = PyTuple_Pack(4, host_step.in(self), version.in(self), microbatch.in(self), position.in(self));
  if (number == nullptr || seen == nullptr) {
    Py_XDECREF(number);
    Py_XDECREF(seen);
    return false;
  }
  serials.share(self, number);
  now_serial.share(self, number);
  now.share(self, seen);
  owner.share(self, home.in(self));  // first: a reader takes the tags, then asks whose they are
  tags.set(self, seen);
  serial.set(self, number);
  std::memcpy(PyByteArray_AS_STRING(buffer.in(self)), cells, sizeof cells);
  return true;
}

// The clock's moment as a new one: itself where nobody else has it.
bool renew_moment(PyObject* self) {
  PyObject* held = moment.in(self);
  if (Py_REFCNT(held) == 1) {
    calls.share(held, zero);
    texts.share(held, zero);
    return true;
  }
  PyObject* fresh = PyObject_CallNoArgs(moment_type);
  if (fresh != nullptr) moment.set(self, fresh);
  return fresh != nullptr;
}

// This thread is at home from now on.
bool come_home(PyObject* self) {
  const unsigned long ident = PyThread_get_thread_ident();
  if (PyLong_AsUnsignedLongMask(home.in(self)) == ident) return true;
  PyObject* mine = PyLong_FromUnsignedLong(ident);
  if (mine != nullptr) home.set(self, mine);
  return mine != nullptr;
}

// `_advance` of a clock whose lock is held and that no call is open on.
bool advance_alone(PyObject* self, PyObject* step) {
  if (PyLong_AsLongLong(step) == -1 && PyErr_Occurred() != nullptr) return false;
  if (!renew_moment(self)) return false;
  host_step.share(self, step);
  forwards.share(self, zero);
  microbatch.share(self, zero);
  return retag_alone(self);
}

bool advance(PyObject* self, PyObject* step) {
  if (!come_home(self)) return false;
  if (PyLong_AsLong(open_calls.in(self)) == 0) return advance_alone(self, step);
  PyObject* done = PyObject_CallMethodOneArg(self, advance_name, step);
  Py_XDECREF(done);
  return done != nullptr;
}

// The cells of the clock's slot. nullptr: the run has ended, and its page with it; else `view` is to be released.
std::int64_t* page_cells(PyObject* self, Py_buffer& view) {
  if (PyObject_GetBuffer(page.in(self), &view, PyBUF_WRITABLE) == 0) return static_cast<std::int64_t*>(view.buf);
  PyErr_Clear();
  return nullptr;
}

// Counter and heartbeat (`Slot.tick`). False: there is no page.
bool tick(PyObject* self, std::int64_t step) {
  Py_buffer view;
  std::int64_t* cells = page_cells(self, view);
  if (cells == nullptr) return false;
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

// `action` with the clock's lock held. False: an error is set.
template <class Action>
bool locked(PyObject* self, Action action) {
  PyObject* held = PyObject_CallMethodNoArgs(lock.in(self), acquire);
  if (held == nullptr) return false;
  Py_DECREF(held);
  const bool done = action();
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyObject* let_go = PyObject_CallMethodNoArgs(lock.in(self), release);
  Py_XDECREF(let_go);
  if (type != nullptr) PyErr_Restore(type, value, trace);
  return done && let_go != nullptr;
}

// Takes the reference to `step`, which may be nullptr (an error). always: also where the clock is there already.
PyObject* go(PyObject* self, PyObject* step, bool always) {
  if (step == nullptr) return nullptr;
  bool is_new = false;
  const bool ok = locked(self, [&] {
    counting.share(self, Py_False);
    is_new = always || PyObject_RichCompareBool(step, host_step.in(self), Py_EQ) == 0;
    return !is_new || advance(self, step);
  });
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

// `Moments.updated`, while there are any.
bool note_update(PyObject* self) {
  PyObject* seen = moments.in(self);
  if (seen == Py_None) return true;
  if (Py_IS_TYPE(seen, reinterpret_cast<PyTypeObject*>(moments_type))) {
    PyObject *at = updated_at.in(seen), *known = versions.in(seen);
    const Py_ssize_t last = PyList_GET_SIZE(at) - 1;
    if (last >= 0 && PyList_GET_SIZE(known) == last + 1 &&
        PyObject_RichCompareBool(PyList_GET_ITEM(at, last), host_step.in(self), Py_EQ) == 1)
      return PyList_SetItem(known, last, Py_NewRef(version.in(self))) == 0;
  }
  PyObject* done =
      PyObject_CallMethodObjArgs(seen, updated_name, host_step.in(self), version.in(self), nullptr);
  Py_XDECREF(done);
  return done != nullptr;
}

bool count_update(PyObject* self) {
  PyObject* next = PyNumber_Add(version.in(self), one);
  if (next == nullptr) return false;
  version.set(self, next);
  if (PyLong_AsLong(open_calls.in(self)) == 0) {
    if (!retag_alone(self)) return false;
  } else {
    PyObject* done = PyObject_CallMethodNoArgs(self, retag_name);
    Py_XDECREF(done);
    if (done == nullptr) return false;
  }
  return note_update(self);
}

// False: an error is set.
bool update(PyObject* self) {
  if (!locked(self, [self] { return count_update(self); })) return false;
  Py_buffer view;
  if (std::int64_t* cells = page_cells(self, view)) {
    cells[PyLong_AsSsize_t(versions_cell.in(self))] = PyLong_AsLongLong(version.in(self));
    PyBuffer_Release(&view);
  }
  return true;
}

PyObject* weights_updated(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 1) {
    PyErr_SetString(PyExc_TypeError, "weights_updated takes the clock");
    return nullptr;
  }
  return update(args[0]) ? Py_NewRef(Py_None) : nullptr;
}

// ---- steps of optimizers

Place watched_clock{"_clock"}, last_optimizer{"_last"};
Place* const kWatch[] = {&watched_clock, &last_optimizer};
PyObject* otherwise = nullptr;  // the method in Python behind a compiled `stepped`

// (watch, optimizer, its arguments, by keyword)
PyObject* optimizer_stepped(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "stepped takes the watch, an optimizer and what it was called with");
    return nullptr;
  }
  PyObject *clock = watched_clock.in(args[0]), *last = last_optimizer.in(args[0]);
  const bool is_usual = PyWeakref_CheckRef(last) && PyWeakref_GET_OBJECT(last) == args[1] &&
                        Py_IS_TYPE(clock, reinterpret_cast<PyTypeObject*>(clock_type));
  if (is_usual && update(clock)) Py_RETURN_NONE;
  PyErr_Clear();  // the method in Python meets it again, and says it
  return PyObject_CallMethodObjArgs(args[0], otherwise, args[1], args[2], args[3], nullptr);
}

// ---- a module's forward

Place inner_call{"_call"}, after_call{"hook"}, called_module{"module"};
Place* const kForward[] = {&inner_call, &after_call, &called_module};

// What calls an instance, in the place of its class's `__call__`.
PyObject* forward(PyObject* self, PyObject* args, PyObject* keywords) {
  PyObject* output = PyObject_Call(inner_call.in(self), args, keywords);
  if (output == nullptr) return nullptr;
  PyObject* told = PyObject_CallFunctionObjArgs(after_call.in(self), called_module.in(self), args, output, nullptr);
  if (told == nullptr) Py_CLEAR(output);
  Py_XDECREF(told);
  return output;
}

// ---- labels of a rollout

Place until{"_until"}, environments{"_environments"}, held_steps{"_held"};
Place* const kLabels[] = {&until, &environments, &held_steps};
PyObject *rewards_key = nullptr, *dones_key = nullptr, *actions_key = nullptr;
PyObject* to_bytes = nullptr;

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
PyMethodDef updated_def{"weights_updated", cast(weights_updated), METH_FASTCALL, "See StepClock.weights_updated."};
PyMethodDef optimizer_def{"stepped", cast(optimizer_stepped), METH_FASTCALL, "See OptimizerWatch.stepped."};
PyMethodDef stepped_def{"stepped", cast(labels_stepped), METH_FASTCALL, "See RolloutLabels.stepped."};

PyObject* clock_methods(PyObject*, PyObject* args) {
  PyObject *type, *one_moment, *many;
  if (!PyArg_ParseTuple(args, "OOOnn", &type, &one_moment, &many, &heartbeat_cell, &ahead_cell)) return nullptr;
  if (!find_all(type, kClock) || !find_all(one_moment, kMoment) || !find_all(many, kMoments)) return nullptr;
  Py_XSETREF(clock_type, Py_NewRef(type));
  Py_XSETREF(moment_type, Py_NewRef(one_moment));
  Py_XSETREF(moments_type, Py_NewRef(many));
  PyObject* const methods[] = {method_of(&step_def), method_of(&step_to_def), method_of(&updated_def)};
  PyObject* all = methods[0] != nullptr && methods[1] != nullptr && methods[2] != nullptr
                      ? PyTuple_Pack(3, methods[0], methods[1], methods[2])
                      : nullptr;
  for (PyObject* method : methods) Py_XDECREF(method);
  return all;
}

PyObject* optimizer_method(PyObject*, PyObject* type) {
  return find_all(type, kWatch) ? method_of(&optimizer_def) : nullptr;
}

PyObject* take_forward(PyObject*, PyObject* type) {
  if (!PyType_Check(type) || !find_all(type, kForward)) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_TypeError, "needs a class");
    return nullptr;
  }
  reinterpret_cast<PyTypeObject*>(type)->tp_call = forward;
  PyType_Modified(reinterpret_cast<PyTypeObject*>(type));
  Py_RETURN_NONE;
}

PyObject* labels_method(PyObject*, PyObject* type) {
  return find_all(type, kLabels) ? method_of(&stepped_def) : nullptr;
}

PyMethodDef functions[] = {
    {"clock_methods", clock_methods, METH_VARARGS,
     "clock_methods(StepClock, its moment, Moments, heartbeat cell, ahead cell): step, step_to and weights_updated."},
    {"optimizer_method", optimizer_method, METH_O, "optimizer_method(OptimizerWatch): stepped."},
    {"take_forward", take_forward, METH_O, "take_forward(ForwardStandIn): instances are called without a frame."},
    {"labels_method", labels_method, METH_O, "labels_method(RolloutLabels): stepped."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_steps", "What a host pays for at each step.", -1, functions,
                      nullptr,               nullptr,  nullptr,                              nullptr};

bool intern_all() {
  const struct {
    PyObject** word;
    const char* text;
  } words[] = {{&acquire, "acquire"},    {&release, "release"}, {&advance_name, "_advance"},
               {&after_name, "_after_step"}, {&retag_name, "_retag"}, {&updated_name, "updated"},
               {&rewards_key, "rewards"}, {&dones_key, "dones"},
               {&actions_key, "actions"}, {&to_bytes, "tobytes"}, {&otherwise, "_stepped"}};
  for (const auto& [word, text] : words)
    if ((*word = PyUnicode_InternFromString(text)) == nullptr) return false;
  return (zero = PyLong_FromLong(0)) != nullptr && (one = PyLong_FromLong(1)) != nullptr;
}

}  // namespace

PyMODINIT_FUNC PyInit__steps() { return intern_all() ? PyModule_Create(&module) : nullptr; }
