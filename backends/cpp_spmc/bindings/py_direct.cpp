// The Python type `DirectCapture`: the whole of a common hook call, the decision included.
//
// It shares its counters with the general path (capture/capture.py) and holds the GIL from reading
// `locked` to its end, so that no other thread runs in between. A call that is due to check the fill of
// the bus checks it here, and goes on if the fill is within the calm range that the general path wrote
// down. In every other case, and for whatever it does not know, it leaves the call to the general path
// and has changed nothing.
#include <cstddef>
#include <cstring>

#include "coin.hpp"
#include "py_capture.hpp"

#include <structmember.h>

namespace spmc::py {
namespace {

// contracts/capture_port.py: STATE_*, CLOCK_* and BUDGET_*.
enum State {
  kOff, kSeen, kCallIndex, kCountdown, kRate, kNextRate, kNextSerial, kNextIndex,
  kCalm, kCalmLooks, kStateCells
};
enum Clock {
  kSerial, kStep, kVersion, kMicrobatch, kPosition, kOwner, kTossed, kPaused, kClockCells
};
enum Budget { kDueNs, kOffered, kDebt, kTop, kBudgetCells };
constexpr long kNoBackward = -1;
constexpr std::int64_t kCallsBetweenLooks = 16;  // contracts/capture_port.py

struct DirectObject {
  PyObject_HEAD
  vectorcallfunc call;
  PortObject* port;
  Py_buffer state_view, clock_view, budget_view;
  std::int64_t *state, *sampled_out, *skipped;
  std::int64_t* clock;
  double* budget;  // nullptr without one
  u64 coin_key;
  PyObject *locked, *graph_task;
};

PyTypeObject* direct_type = nullptr;

bool is_locked(const DirectObject& self) {
  PyObject* answer = PyObject_CallNoArgs(self.locked);
  const bool locked = answer != Py_False;
  Py_XDECREF(answer);
  return locked;
}

// Activation checkpointing runs the forward again inside of a backward pass.
bool in_backward(const DirectObject& self) {
  PyObject* answer = PyObject_CallNoArgs(self.graph_task);
  const bool outside = answer != nullptr && PyLong_Check(answer) &&
                       PyLong_AsLong(answer) == kNoBackward && PyErr_Occurred() == nullptr;
  Py_XDECREF(answer);
  return !outside;
}

// Whether the hook is on, the host not paused, and nobody else at work. May leave an error set.
bool is_ready(const DirectObject& self) {
  return self.port->producer != nullptr && self.state[kOff] == 0 && self.clock[kPaused] == 0 &&
         !in_backward(self) && !is_locked(self) && is_free(*self.port);
}

double rows_of(const TensorView& tensor) {
  double rows = 1;
  for (int i = 0; i + 1 < tensor.ndim; ++i) rows *= static_cast<double>(tensor.shape[i]);
  return rows;
}

double double_of(std::int64_t cell) {
  double value;
  std::memcpy(&value, &cell, sizeof value);
  return value;
}

// u in [0, 1) of one call.
double toss(u64 key, const std::int64_t* clock, std::int64_t call_index) {
  return asys::coin::toss(key, static_cast<u64>(clock[kStep]), static_cast<u64>(clock[kVersion]),
                          static_cast<u64>(clock[kMicrobatch]), static_cast<u64>(call_index));
}

// The look at the bus that is due. The producer is idle.
bool is_calm(DirectObject& self) {
  std::int64_t* state = self.state;
  if (state[kCalmLooks] <= 0) return false;
  const double calm = double_of(state[kCalm]);
  if (calm < 0 || (calm < 1 && self.port->producer->core->fill_ratio() > calm)) return false;
  --state[kCalmLooks];
  state[kCountdown] = kCallsBetweenLooks + 1;
  return true;
}

int decide_and_deliver(DirectObject& self, PyObject* output) {
  const u64 started = monotonic_ns();
  std::int64_t* state = self.state;
  TensorView tensor;
  double* budget = self.budget;
  if ((budget != nullptr && static_cast<double>(started) >= budget[kDueNs]) ||
      !takes(output, tensor) || !is_ready(self))
    return kNotMine;
  std::int64_t* clock = self.clock;
  if (clock[kOwner] != static_cast<std::int64_t>(PyThread_get_thread_ident())) return kNotMine;
  if (state[kCountdown] <= 1 && !is_calm(self)) return kNotMine;

  if (state[kSeen] == clock[kSerial]) {
    ++state[kCallIndex];
  } else {
    state[kSeen] = clock[kSerial];
    state[kCallIndex] = 0;
  }
  const std::int64_t index = state[kCallIndex];
  if (clock[kSerial] > state[kNextSerial] ||
      (clock[kSerial] == state[kNextSerial] && index >= state[kNextIndex]))
    state[kRate] = state[kNextRate];
  const double rows = budget != nullptr ? rows_of(tensor) : 0;
  if (budget != nullptr) {
    budget[kOffered] += rows;
    if (rows > budget[kTop]) budget[kTop] = rows;
  }
  --state[kCountdown];
  const double rate = double_of(state[kRate]);
  if (rate < 1.0) {
    if (index >= clock[kTossed]) clock[kTossed] = index + 1;
    if (toss(self.coin_key, clock, index) >= rate) {
      *self.port->cells.calls += 1;
      *self.sampled_out += 1;
      return kAccepted;
    }
  }
  const Tags tags{static_cast<u64>(clock[kStep]),       static_cast<u64>(clock[kVersion]),
                  static_cast<u32>(index),              static_cast<u16>(clock[kMicrobatch]),
                  static_cast<u32>(clock[kPosition]),   static_cast<float>(rate)};
  const int outcome = deliver(*self.port, tensor, tags, started);
  if (budget != nullptr && outcome == kAccepted) budget[kDebt] += rows;
  return outcome;
}

// (what the module returned)
PyObject* capture(PyObject* object, PyObject* const* args, std::size_t flags, PyObject* names) {
  if (PyVectorcall_NARGS(flags) != 1 || names != nullptr) {
    PyErr_SetString(PyExc_TypeError, "needs what the module returned");
    return nullptr;
  }
  return PyLong_FromLong(capture_directly(object, args[0]));
}

void direct_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<DirectObject*>(object);
  PyTypeObject* type = Py_TYPE(object);
  PyBuffer_Release(&self->state_view);
  PyBuffer_Release(&self->clock_view);
  PyBuffer_Release(&self->budget_view);
  Py_DECREF(self->port);
  Py_XDECREF(self->locked);
  Py_XDECREF(self->graph_task);
  type->tp_free(object);
  Py_DECREF(type);
}

// The memory of `decision`'s attribute `name`; None leaves `view` empty. False: an error is set.
bool view_of(PyObject* decision, const char* name, int cells, int access, Py_buffer& view) {
  PyObject* memory = PyObject_GetAttrString(decision, name);
  if (memory == nullptr) return false;
  if (memory == Py_None) {
    Py_DECREF(memory);
    return true;
  }
  const int failed = PyObject_GetBuffer(memory, &view, access);
  Py_DECREF(memory);
  if (failed != 0) {
    view = {};
    return false;
  }
  if (view.len < static_cast<Py_ssize_t>(cells) * 8) {
    PyErr_Format(contract.bus_error, "%s holds %zd bytes and needs %d", name, view.len, cells * 8);
    return false;
  }
  return true;
}

u64 number_of(PyObject* decision, const char* name) {
  PyObject* number = PyObject_GetAttrString(decision, name);
  const u64 index = number != nullptr ? PyLong_AsUnsignedLongLong(number) : 0;
  Py_XDECREF(number);
  return index;
}

bool given(const Py_buffer& view, const char* name) {
  if (view.buf == nullptr) PyErr_Format(contract.bus_error, "%s is None", name);
  return view.buf != nullptr;
}

PyMemberDef direct_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(DirectObject, call), READONLY, nullptr}, {}};
PyType_Slot direct_slots[] = {{Py_tp_members, direct_members},
                              {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(direct_dealloc)},
                              {0, nullptr}};
PyType_Spec direct_spec = {"asys_bench.backends.cpp_spmc._spmc.DirectCapture",
                           sizeof(DirectObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                               Py_TPFLAGS_HAVE_VECTORCALL,
                           direct_slots};

}  // namespace

bool is_direct_capture(PyObject* object) { return Py_IS_TYPE(object, direct_type); }

int capture_directly(PyObject* object, PyObject* output) {
  int outcome = kNotMine;
  try {
    outcome = decide_and_deliver(*reinterpret_cast<DirectObject*>(object), output);
  } catch (const Error&) {
    outcome = kNotMine;  // the general path meets the same error and says it
  }
  PyErr_Clear();
  return outcome;
}

int skip_directly(PyObject* object) {
  DirectObject& self = *reinterpret_cast<DirectObject*>(object);
  const bool ready = is_ready(self);
  PyErr_Clear();
  if (!ready) return kNotMine;
  *self.port->cells.calls += 1;
  *self.skipped += 1;
  return kAccepted;
}

PyObject* new_direct_capture(PyObject* object, PyObject* decision) {
  auto* port = reinterpret_cast<PortObject*>(object);
  if (port->producer == nullptr) {
    PyErr_SetString(contract.bus_error, "the capture port is closed");
    return nullptr;
  }
  auto* self = PyObject_New(DirectObject, direct_type);
  if (self == nullptr) return nullptr;
  Py_INCREF(object);
  self->call = capture;
  self->port = port;
  self->state_view = self->clock_view = self->budget_view = {};
  self->locked = PyObject_GetAttrString(decision, "locked");
  self->graph_task = PyObject_GetAttrString(decision, "graph_task");
  const u64 sampled_out = number_of(decision, "sampled_out");
  const u64 skipped = number_of(decision, "skipped");
  self->coin_key = number_of(decision, "coin_key");
  const bool complete = self->locked != nullptr &&
                        self->graph_task != nullptr && PyErr_Occurred() == nullptr &&
                        view_of(decision, "state", kStateCells, PyBUF_WRITABLE, self->state_view) &&
                        view_of(decision, "clock", kClockCells, PyBUF_WRITABLE, self->clock_view) &&
                        view_of(decision, "budget", kBudgetCells, PyBUF_WRITABLE,
                                self->budget_view) &&
                        given(self->state_view, "state") && given(self->clock_view, "clock");
  const u64 cells = static_cast<u64>(port->cells.view.len) / 8;
  if (!complete || sampled_out >= cells || skipped >= cells) {
    if (complete)
      PyErr_Format(contract.bus_error, "%s lies outside the stats page",
                   skipped >= cells ? "skipped" : "sampled_out");
    Py_DECREF(self);
    return nullptr;
  }
  self->state = static_cast<std::int64_t*>(self->state_view.buf);
  self->clock = static_cast<std::int64_t*>(self->clock_view.buf);
  self->budget = static_cast<double*>(self->budget_view.buf);
  auto* page = static_cast<std::int64_t*>(port->cells.view.buf);
  self->sampled_out = page + sampled_out;
  self->skipped = page + skipped;
  return reinterpret_cast<PyObject*>(self);
}

bool add_direct_type(PyObject* module) {
  direct_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&direct_spec));
  return direct_type != nullptr && PyModule_AddType(module, direct_type) == 0;
}

}  // namespace spmc::py
