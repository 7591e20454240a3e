// The Python types `Consumer`, `Lease` and `View` (what memoryviews of payloads are made of).
#include <new>

#include "copy.hpp"
#include "py_frames.hpp"

namespace spmc::py {
namespace {

// Outlives its lease: views keep the mapping, and count themselves, through it. Under the GIL.
struct LeaseState {
  std::shared_ptr<Segment> segment;
  long references = 1;
  long exports = 0;  // managed buffers alive
};
void drop(LeaseState* state) {
  if (--state->references == 0) delete state;
}

struct ConsumerObject {
  PyObject_HEAD
  Consumer* core;
  int generation;
};

struct LeaseObject {
  PyObject_HEAD
  ConsumerObject* consumer;
  LeaseState* state;
  std::vector<Claim> claims;
  PyObject* packets;  // list, once asked for
  PyObject* views;    // list of the payloads' memoryviews
  long delivered;
  bool open;
};

// Exports one payload. Read-only, counted.
struct ViewObject {
  PyObject_HEAD
  LeaseState* state;
  const u8* data;
  Py_ssize_t bytes;
  Py_ssize_t stride;  // 1, where the buffer protocol can point to it
};

PyTypeObject* consumer_type = nullptr;
PyTypeObject* lease_type = nullptr;
PyTypeObject* view_type = nullptr;
char byte_format[] = "B";

// ---- View ---------------------------------------------------------------------------------------
int view_getbuffer(PyObject* object, Py_buffer* view, int flags) {
  auto* self = reinterpret_cast<ViewObject*>(object);
  if ((flags & PyBUF_WRITABLE) != 0) {
    PyErr_SetString(PyExc_BufferError, "payloads of a lease are read-only: copy what you change");
    return -1;
  }
  view->buf = const_cast<u8*>(self->data);
  view->obj = Py_NewRef(object);
  view->len = self->bytes;
  view->readonly = 1;
  view->itemsize = 1;
  view->format = (flags & PyBUF_FORMAT) != 0 ? byte_format : nullptr;
  view->ndim = 1;
  view->shape = (flags & PyBUF_ND) != 0 ? &self->bytes : nullptr;
  view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? &self->stride : nullptr;
  view->suboffsets = nullptr;
  view->internal = nullptr;
  ++self->state->exports;
  return 0;
}

void view_releasebuffer(PyObject* object, Py_buffer*) {
  --reinterpret_cast<ViewObject*>(object)->state->exports;
}

void view_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  drop(reinterpret_cast<ViewObject*>(object)->state);
  type->tp_free(object);
  Py_DECREF(type);
}

ViewObject* new_view(LeaseState* state, const u8* data, u64 nbytes) {
  auto* view = PyObject_New(ViewObject, view_type);
  if (view == nullptr) return nullptr;
  view->state = state;
  ++state->references;
  view->data = data;
  view->bytes = static_cast<Py_ssize_t>(nbytes);
  view->stride = 1;
  return view;
}

// ---- Lease --------------------------------------------------------------------------------------
bool must_be_open(LeaseObject* self) {
  if (self->open) return true;
  PyErr_SetString(contract.bus_error, "the lease was released: its payloads are gone");
  return false;
}

bool build_packets(LeaseObject* self) {
  if (self->packets != nullptr) return true;
  if (!must_be_open(self)) return false;
  const auto count = static_cast<Py_ssize_t>(self->claims.size());
  PyObject* packets = PyList_New(count);
  PyObject* views = PyList_New(0);
  bool ok = packets != nullptr && views != nullptr;
  for (Py_ssize_t i = 0; ok && i < count; ++i) {
    const Claim& claim = self->claims[static_cast<std::size_t>(i)];
    if (!lies_in_arena(claim)) {
      ok = false;
      break;
    }
    ViewObject* view = new_view(self->state, claim.frame + kPacketHeaderBytes, claim.nbytes);
    PyObject* payload = view == nullptr ? nullptr
                                        : PyMemoryView_FromObject(reinterpret_cast<PyObject*>(view));
    Py_XDECREF(view);
    PyObject* packet = nullptr;
    if (payload != nullptr && PyList_Append(views, payload) == 0)
      packet = build_packet(claim.frame, claim.nbytes, payload);
    Py_XDECREF(payload);
    ok = packet != nullptr;
    if (ok) PyList_SET_ITEM(packets, i, packet);
  }
  if (!ok) {
    Py_XDECREF(packets);
    Py_XDECREF(views);
    return false;
  }
  self->packets = packets;
  self->views = views;
  return true;
}

// Close the memoryviews that the lease itself made. False: something made from them is alive. It looks
// before it closes anything, so that a refused release leaves every payload readable.
bool close_views(LeaseObject* self, bool force) {
  long own = 0;
  bool clean = true;
  const Py_ssize_t count = self->views == nullptr ? 0 : PyList_GET_SIZE(self->views);
  for (Py_ssize_t i = 0; i < count; ++i) {
    // A slice or a numpy array is a sibling over the same managed buffer, not an export of this view.
    auto* view = reinterpret_cast<PyMemoryViewObject*>(PyList_GET_ITEM(self->views, i));
    if ((view->flags & _Py_MEMORYVIEW_RELEASED) != 0) continue;
    ++own;
    clean = clean && view->exports == 0 && view->mbuf->exports == 1;
  }
  clean = clean && self->state->exports == own;
  if (!clean && !force) return false;
  static PyObject* release = PyUnicode_InternFromString("release");
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* result = PyObject_CallMethodNoArgs(PyList_GET_ITEM(self->views, i), release);
    if (result == nullptr) PyErr_Clear();
    Py_XDECREF(result);
  }
  Py_CLEAR(self->views);
  return clean;
}

bool release_lease(LeaseObject* self) {
  if (!self->open) return true;
  if (!same_process(self->consumer->generation)) return false;
  if (!close_views(self, false)) {
    PyErr_SetString(PyExc_BufferError,
                    "views of this lease's payloads are alive (arrays, tensors, slices): drop or copy "
                    "them, then release again");
    return false;
  }
  self->delivered = self->consumer->core->release(self->claims);
  self->open = false;
  return true;
}

void give_back_lease(LeaseObject* self) {
  if (!self->open) return;
  close_views(self, true);
  self->open = false;
  if (self->consumer->generation == fork_generation) self->consumer->core->give_back(self->claims);
}

PyObject* lease_release(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  return release_lease(self) ? PyLong_FromLong(self->delivered) : nullptr;
}

PyObject* lease_give_back(PyObject* object, PyObject*) {
  give_back_lease(reinterpret_cast<LeaseObject*>(object));
  Py_RETURN_NONE;
}

PyObject* lease_enter(PyObject* object, PyObject*) { return Py_NewRef(object); }

PyObject* lease_exit(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  if (count > 0 && args[0] != Py_None) give_back_lease(self);
  else if (!release_lease(self)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* lease_packets(PyObject* object, void*) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  return build_packets(self) ? Py_NewRef(self->packets) : nullptr;
}

PyObject* lease_headers(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  return must_be_open(self) ? headers_of(self->claims) : nullptr;
}

PyObject* lease_copy_frames(PyObject* object, PyObject* args, PyObject* keywords) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  return must_be_open(self) ? copy_frames(self->claims, args, keywords) : nullptr;
}

PyObject* lease_iter(PyObject* object) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  return build_packets(self) ? PyObject_GetIter(self->packets) : nullptr;
}

Py_ssize_t lease_length(PyObject* object) {
  return static_cast<Py_ssize_t>(reinterpret_cast<LeaseObject*>(object)->claims.size());
}

void lease_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<LeaseObject*>(object);
  PyTypeObject* type = Py_TYPE(object);
  if (self->open) {
    // Dropped without a release: the reader gave up, unless views are alive. Then the packets stay
    // claimed until the subscription closes, because handing them on would allow their reuse.
    if (close_views(self, false)) give_back_lease(self);
  }
  Py_CLEAR(self->packets);
  Py_CLEAR(self->views);
  drop(self->state);
  self->claims.~vector();
  Py_DECREF(self->consumer);
  type->tp_free(object);
  Py_DECREF(type);
}

// ---- Consumer -----------------------------------------------------------------------------------
LeaseObject* new_lease(ConsumerObject* consumer) {
  auto* lease = PyObject_New(LeaseObject, lease_type);
  if (lease == nullptr) return nullptr;
  Py_INCREF(consumer);
  lease->consumer = consumer;
  lease->state = new LeaseState{consumer->core->segment()};
  new (&lease->claims) std::vector<Claim>();
  lease->packets = lease->views = nullptr;
  lease->delivered = 0;
  lease->open = true;
  return lease;
}

bool pull_into(LeaseObject* lease, Consumer& core, u64 most, u64 least, double timeout_s) {
  lease->claims.reserve(most < 64 ? most : 64);
  u64 have = core.claim(lease->claims, static_cast<unsigned>(most));
  if (have >= least) core.filled();
  if (have >= least || timeout_s <= 0) return true;
  const u64 start = monotonic_ns();
  const u64 deadline = start + static_cast<u64>((timeout_s < 1e9 ? timeout_s : 1e9) * 1e9);
  for (bool more = true; more && have < least;) {
    if (monotonic_ns() >= deadline) break;
    if (!unlocked([&] {
          more = least > 1 ? core.doze(deadline, deadline - start, least) : core.wait(deadline);
          have += core.claim(lease->claims, static_cast<unsigned>(most - have));
        }))
      return false;
    if (PyErr_CheckSignals() != 0) return false;
  }
  if (have >= least) core.filled();
  return true;
}

PyObject* pull_batch(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  auto* self = reinterpret_cast<ConsumerObject*>(object);
  if (!same_process(self->generation)) return nullptr;
  if (self->core->closed()) {
    PyErr_SetString(contract.bus_error, "the subscription is closed");
    return nullptr;
  }
  static const char* const names[] = {"max_packets", "timeout_s", "min_packets"};
  PyObject* given[3] = {nullptr, nullptr, nullptr};
  if (count > 3) {
    PyErr_SetString(PyExc_TypeError, "pull_batch takes max_packets, timeout_s, min_packets");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < count; ++i) given[i] = args[i];
  const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* name = PyTuple_GET_ITEM(keywords, k);
    int at = 0;
    while (at < 3 && PyUnicode_CompareWithASCIIString(name, names[at]) != 0) ++at;
    if (at == 3) {
      PyErr_Format(PyExc_TypeError, "pull_batch has no argument %R", name);
      return nullptr;
    }
    given[at] = args[count + k];
  }
  long most = given[0] == nullptr ? 64 : PyLong_AsLong(given[0]);
  const double timeout_s = given[1] == nullptr ? 0.05 : PyFloat_AsDouble(given[1]);
  long least = given[2] == nullptr ? 1 : PyLong_AsLong(given[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (most < 0) most = 0;
  if (most > 1L << 22) most = 1L << 22;
  if (least > most) least = most;
  LeaseObject* lease = new_lease(self);
  if (lease == nullptr) return nullptr;
  if (!pull_into(lease, *self->core, static_cast<u64>(most), static_cast<u64>(least < 0 ? 0 : least),
                 timeout_s))
    Py_CLEAR(lease);  // gives its packets back
  return reinterpret_cast<PyObject*>(lease);
}

PyObject* get_ended(PyObject* object, void*) {
  auto* self = reinterpret_cast<ConsumerObject*>(object);
  if (!same_process(self->generation)) return nullptr;
  return PyBool_FromLong(self->core->ended());
}

PyObject* close_consumer(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<ConsumerObject*>(object);
  if (self->generation == fork_generation) self->core->close();
  Py_RETURN_NONE;
}

void consumer_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<ConsumerObject*>(object);
  PyTypeObject* type = Py_TYPE(object);
  // In a forked child the member is the parent's: its claims are not ours to settle.
  if (self->generation == fork_generation) delete self->core;
  type->tp_free(object);
  Py_DECREF(type);
}

PyType_Slot view_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(view_getbuffer)},
                            {Py_bf_releasebuffer, reinterpret_cast<void*>(view_releasebuffer)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(view_dealloc)},
                            {0, nullptr}};
PyMethodDef lease_methods[] = {{"release", lease_release, METH_NOARGS, nullptr},
                               {"give_back", lease_give_back, METH_NOARGS, nullptr},
                               {"headers", lease_headers, METH_NOARGS, nullptr},
                               {"copy_frames", as_c(lease_copy_frames), METH_VARARGS | METH_KEYWORDS, nullptr},
                               {"__enter__", lease_enter, METH_NOARGS, nullptr},
                               {"__exit__", as_c(lease_exit), METH_FASTCALL, nullptr},
                               {}};
PyGetSetDef lease_getters[] = {{"packets", lease_packets, nullptr, nullptr, nullptr}, {}};
PyType_Slot lease_slots[] = {{Py_tp_methods, lease_methods},
                             {Py_tp_getset, lease_getters},
                             {Py_tp_iter, reinterpret_cast<void*>(lease_iter)},
                             {Py_sq_length, reinterpret_cast<void*>(lease_length)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(lease_dealloc)},
                             {0, nullptr}};
PyMethodDef consumer_methods[] = {
    {"pull_batch", as_c(pull_batch), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"close", close_consumer, METH_NOARGS, nullptr},
    {}};
PyGetSetDef consumer_getters[] = {{"ended", get_ended, nullptr, nullptr, nullptr}, {}};
PyType_Slot consumer_slots[] = {{Py_tp_methods, consumer_methods},
                                {Py_tp_getset, consumer_getters},
                                {Py_tp_dealloc, reinterpret_cast<void*>(consumer_dealloc)},
                                {0, nullptr}};
constexpr unsigned kFlags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
PyType_Spec view_spec = {"asys_bench.backends.cpp_spmc._spmc.View", sizeof(ViewObject), 0, kFlags,
                         view_slots};
PyType_Spec lease_spec = {"asys_bench.backends.cpp_spmc._spmc.Lease", sizeof(LeaseObject), 0, kFlags,
                          lease_slots};
PyType_Spec consumer_spec = {"asys_bench.backends.cpp_spmc._spmc.Consumer", sizeof(ConsumerObject), 0,
                             kFlags, consumer_slots};

}  // namespace

PyObject* new_consumer(std::shared_ptr<Segment> segment, const GroupInfo& group, u64 spin_ns,
                       u64 poll_ns) {
  auto core = std::make_unique<Consumer>(std::move(segment), group, spin_ns, poll_ns);
  auto* object = PyObject_New(ConsumerObject, consumer_type);
  if (object == nullptr) return nullptr;
  object->core = core.release();
  object->generation = fork_generation;
  return reinterpret_cast<PyObject*>(object);
}

bool add_consumer_types(PyObject* module) {
  view_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&view_spec));
  lease_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&lease_spec));
  consumer_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&consumer_spec));
  return view_type != nullptr && lease_type != nullptr && consumer_type != nullptr &&
         PyModule_AddType(module, view_type) == 0 && PyModule_AddType(module, lease_type) == 0 &&
         PyModule_AddType(module, consumer_type) == 0;
}

}  // namespace spmc::py
