// The Python types `Producer` and `Reservation`.
#include <time.h>

#include <cstring>

#include "py_frames.hpp"

namespace spmc::py {
namespace {

constexpr u64 kCommitBytes = 64 << 10;  // a batch is published in pieces, so that readers overlap
constexpr long kRoomPollNs = 50'000;

struct ReservationObject {
  PyObject_HEAD
  ProducerObject* producer;  // nullptr once committed or aborted
  PyObject* view;
  u8* data;
  u64 nbytes;
  std::shared_ptr<Segment>* segment;  // numpy views may outlive everything else
};

PyTypeObject* producer_type = nullptr;
PyTypeObject* reservation_type = nullptr;

PyObject* outcome(ProducerObject* self, Refusal refusal) {
  self->refusal = static_cast<unsigned>(refusal);
  if (refusal == Refusal::none) Py_RETURN_TRUE;
  self->core->count_refusal(refusal);
  Py_RETURN_FALSE;
}

void seal(const Producer& producer, u8* payload, u64 nbytes) {
  if (!producer.checksum()) return;
  const u32 crc = crc32c(payload, nbytes);
  std::memcpy(payload - kPacketHeaderBytes + 72, &crc, 4);
  payload[6 - static_cast<std::int64_t>(kPacketHeaderBytes)] = 1;
}

PyObject* offer(ProducerObject* self, PyObject* meta, PyObject* object, double timeout_s) {
  if (!ready(self)) return nullptr;
  Header header;
  Payload payload;
  if (!parse_meta(meta, header) || !payload.get(object)) return nullptr;
  Producer& core = *self->core;
  Refusal refusal = Refusal::none;
  u8* to = nullptr;
  try {
    to = core.reserve(payload.nbytes, refusal);
  } catch (const Error& error) {
    PyErr_SetString(contract.bus_error, error.what());
    return nullptr;
  }
  if (to == nullptr && refusal == Refusal::full && timeout_s >= 0) {
    const u64 deadline = monotonic_ns() + static_cast<u64>(timeout_s * 1e9);
    self->use = Use::pushing;
    bool good = true;
    while (good && to == nullptr && refusal == Refusal::full && monotonic_ns() < deadline) {
      good = unlocked([&] {
        const u64 until = monotonic_ns() + 20'000'000;  // look at signals this often
        while (to == nullptr && refusal == Refusal::full) {
          const u64 now = monotonic_ns();
          if (now >= deadline || now >= until) break;
          const timespec pause{0, kRoomPollNs};
          nanosleep(&pause, nullptr);
          to = core.reserve(payload.nbytes, refusal);
        }
      });
      good = good && PyErr_CheckSignals() == 0;
    }
    self->use = Use::idle;
    if (!good) {
      if (to != nullptr) core.abort();
      return nullptr;
    }
    if (to == nullptr && refusal == Refusal::full) refusal = Refusal::timeout;
  }
  if (to == nullptr) return outcome(self, refusal);
  if (payload.nbytes < kUnlockBytes) {
    place(core, header, to, payload.data, payload.nbytes);
    core.commit();
  } else {
    self->use = Use::pushing;
    const bool good = unlocked([&] {
      place(core, header, to, payload.data, payload.nbytes);
      core.commit();
    });
    self->use = Use::idle;
    if (!good) return nullptr;
  }
  self->refusal = static_cast<unsigned>(Refusal::none);
  Py_RETURN_TRUE;
}

// Arguments of a two-argument call, by position or by name. False: an error is set.
bool two_arguments(const char* first, const char* second, PyObject* const* args, Py_ssize_t count,
                   PyObject* names, PyObject** out) {
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  out[0] = count > 0 ? args[0] : nullptr;
  out[1] = count > 1 ? args[1] : nullptr;
  bool known = count + named == 2;
  for (Py_ssize_t i = 0; known && i < named; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (PyUnicode_CompareWithASCIIString(name, first) == 0) out[0] = args[count + i];
    else if (PyUnicode_CompareWithASCIIString(name, second) == 0) out[1] = args[count + i];
    else known = false;
  }
  if (known && out[0] != nullptr && out[1] != nullptr) return true;
  PyErr_Format(PyExc_TypeError, "needs the arguments %s and %s", first, second);
  return false;
}

PyObject* try_push(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  PyObject* given[2];
  if (!two_arguments("meta", "payload", args, count, names, given)) return nullptr;
  return offer(reinterpret_cast<ProducerObject*>(object), given[0], given[1], -1.0);
}

PyObject* push(PyObject* object, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"meta", "payload", "timeout_s", nullptr};
  PyObject *meta = nullptr, *payload = nullptr;
  double timeout_s = 0;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOd", const_cast<char**>(names), &meta, &payload,
                                   &timeout_s))
    return nullptr;
  return offer(reinterpret_cast<ProducerObject*>(object), meta, payload,
               timeout_s > 0 ? timeout_s : 0.0);
}

PyObject* try_push_many(PyObject* object, PyObject* const* args, Py_ssize_t count,
                        PyObject* names) {
  auto* self = reinterpret_cast<ProducerObject*>(object);
  PyObject* given[2];
  if (!two_arguments("meta", "payloads", args, count, names, given)) return nullptr;
  if (!ready(self)) return nullptr;
  Header header;
  Payload payload;
  if (!parse_meta(given[0], header) || !payload.get_rows(given[1])) return nullptr;
  Producer& core = *self->core;
  u64 done = 0;
  Refusal refusal = Refusal::none;
  const u64 row_bytes = payload.rows == 0 ? 0 : payload.nbytes / payload.rows;
  const auto row = [&](u64 i) { return Span{payload.data + i * row_bytes, row_bytes}; };
  const auto push_rows = [&] {
    done = push_each(core, header, payload.rows, kCommitBytes, refusal, row);
  };
  self->use = Use::pushing;
  bool good = true;
  if (payload.nbytes >= kUnlockBytes) {
    good = unlocked(push_rows);
  } else {
    try {
      push_rows();
    } catch (const Error& error) {
      PyErr_SetString(contract.bus_error, error.what());
      good = false;
    }
  }
  self->use = Use::idle;
  if (!good) return nullptr;
  self->refusal = static_cast<unsigned>(refusal);
  if (refusal != Refusal::none) core.count_refusal(refusal);
  return PyLong_FromUnsignedLongLong(done);
}

PyObject* reserve(PyObject* object, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"nbytes", nullptr};
  auto* self = reinterpret_cast<ProducerObject*>(object);
  PyObject* arg = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O", const_cast<char**>(names), &arg))
    return nullptr;
  if (!ready(self)) return nullptr;
  const u64 nbytes = PyLong_AsUnsignedLongLong(arg);
  if (nbytes == ~0ULL && PyErr_Occurred() != nullptr) return nullptr;
  Refusal refusal = Refusal::none;
  u8* to = nullptr;
  try {
    to = self->core->reserve(nbytes, refusal);
  } catch (const Error& error) {
    PyErr_SetString(contract.bus_error, error.what());
    return nullptr;
  }
  self->refusal = static_cast<unsigned>(refusal);
  if (to == nullptr) {
    self->core->count_refusal(refusal);
    Py_RETURN_NONE;
  }
  auto* reservation = PyObject_New(ReservationObject, reservation_type);
  if (reservation == nullptr) {
    self->core->abort();
    return nullptr;
  }
  Py_INCREF(self);
  reservation->producer = self;
  reservation->data = to;
  reservation->nbytes = nbytes;
  reservation->segment = new std::shared_ptr<Segment>(self->core->segment());
  reservation->view = PyMemoryView_FromObject(reinterpret_cast<PyObject*>(reservation));
  self->use = Use::reserved;
  if (reservation->view == nullptr) {
    Py_DECREF(reservation);
    return nullptr;
  }
  // The view holds the reservation; the reservation holds the view: `close_view` cuts that circle.
  return reinterpret_cast<PyObject*>(reservation);
}

PyObject* fill_ratio(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<ProducerObject*>(object);
  if (!same_process(self->generation)) return nullptr;
  if (self->use != Use::idle) Py_RETURN_NONE;  // a push changes its counters: the caller keeps the last answer
  return PyFloat_FromDouble(self->core->fill_ratio());
}

PyObject* get_pushing(PyObject* object, void*) {
  return PyBool_FromLong(reinterpret_cast<ProducerObject*>(object)->use == Use::pushing);
}

PyObject* get_most_bytes(PyObject* object, void*) {
  const auto* self = reinterpret_cast<ProducerObject*>(object);
  return PyLong_FromUnsignedLongLong(self->core->segment()->geometry().max_payload);
}

PyObject* get_refusal(PyObject* object, void*) {
  return Py_NewRef(
      PyTuple_GET_ITEM(contract.refusals, reinterpret_cast<ProducerObject*>(object)->refusal));
}

void producer_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  delete reinterpret_cast<ProducerObject*>(object)->core;
  type->tp_free(object);
  Py_DECREF(type);
}

// ---- Reservation --------------------------------------------------------------------------------
void close_view(ReservationObject* self) {
  if (self->view == nullptr) return;
  PyObject* result = PyObject_CallMethod(self->view, "release", nullptr);
  if (result == nullptr) PyErr_Clear();  // an array over it is alive; it must not be written any more
  Py_XDECREF(result);
  Py_CLEAR(self->view);
}

PyObject* commit(PyObject* object, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"meta", "nbytes", nullptr};
  auto* self = reinterpret_cast<ReservationObject*>(object);
  PyObject *meta = nullptr, *size = Py_None;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|O", const_cast<char**>(names), &meta, &size))
    return nullptr;
  ProducerObject* producer = self->producer;
  if (producer == nullptr) {
    PyErr_SetString(contract.bus_error, "the reservation was committed or aborted before");
    return nullptr;
  }
  if (!same_process(producer->generation)) return nullptr;
  u64 nbytes = self->nbytes;
  if (size != Py_None) {
    nbytes = PyLong_AsUnsignedLongLong(size);
    if (nbytes == ~0ULL && PyErr_Occurred() != nullptr) return nullptr;
    if (nbytes > self->nbytes) {
      PyErr_Format(contract.packet_error, "%llu bytes were reserved, %llu cannot be committed",
                   static_cast<unsigned long long>(self->nbytes),
                   static_cast<unsigned long long>(nbytes));
      return nullptr;
    }
  }
  Header header;
  if (!parse_meta(meta, header)) return nullptr;
  close_view(self);
  self->producer = nullptr;
  producer->use = Use::idle;
  Producer& core = *producer->core;
  PyObject* result = nullptr;
  if (core.segment()->refusing()) {
    core.abort();
    result = outcome(producer, Refusal::closed);
  } else {
    write_header(header, self->data, nbytes, core);
    seal(core, self->data, nbytes);
    core.queue(nbytes, header.hook_id);
    core.commit();
    result = outcome(producer, Refusal::none);
  }
  Py_DECREF(producer);
  return result;
}

PyObject* abort_reservation(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<ReservationObject*>(object);
  ProducerObject* producer = self->producer;
  if (producer != nullptr) {
    close_view(self);
    self->producer = nullptr;
    producer->use = Use::idle;
    producer->core->abort();
    Py_DECREF(producer);
  }
  Py_RETURN_NONE;
}

PyObject* get_view(PyObject* object, void*) {
  auto* self = reinterpret_cast<ReservationObject*>(object);
  if (self->view != nullptr) return Py_NewRef(self->view);
  PyErr_SetString(contract.bus_error, "the reservation was committed or aborted");
  return nullptr;
}

int reservation_buffer(PyObject* object, Py_buffer* view, int flags) {
  auto* self = reinterpret_cast<ReservationObject*>(object);
  return PyBuffer_FillInfo(view, object, self->data, static_cast<Py_ssize_t>(self->nbytes), 0, flags);
}

void reservation_dealloc(PyObject* object) {
  auto* self = reinterpret_cast<ReservationObject*>(object);
  PyTypeObject* type = Py_TYPE(object);
  delete self->segment;
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef producer_methods[] = {
    {"try_push", as_c(try_push), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"push", as_c(push), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"try_push_many", as_c(try_push_many), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"try_push_frames", as_c(try_push_frames), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"reserve", as_c(reserve), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"fill_ratio", fill_ratio, METH_NOARGS, nullptr},
    {"capture_port", as_c(new_capture_port), METH_VARARGS | METH_KEYWORDS, nullptr},
    {}};
PyGetSetDef producer_getters[] = {{"last_refusal", get_refusal, nullptr, nullptr, nullptr},
                                  {"max_payload_bytes", get_most_bytes, nullptr, nullptr, nullptr},
                                  {"pushing", get_pushing, nullptr, nullptr, nullptr},
                                  {}};
PyType_Slot producer_slots[] = {{Py_tp_methods, producer_methods},
                                {Py_tp_getset, producer_getters},
                                {Py_tp_dealloc, reinterpret_cast<void*>(producer_dealloc)},
                                {0, nullptr}};
PyType_Spec producer_spec = {"asys_bench.backends.cpp_spmc._spmc.Producer", sizeof(ProducerObject), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, producer_slots};

PyMethodDef reservation_methods[] = {
    {"commit", as_c(commit), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"abort", abort_reservation, METH_NOARGS, nullptr},
    {}};
PyGetSetDef reservation_getters[] = {{"view", get_view, nullptr, nullptr, nullptr}, {}};
PyType_Slot reservation_slots[] = {{Py_tp_methods, reservation_methods},
                                   {Py_tp_getset, reservation_getters},
                                   {Py_bf_getbuffer, reinterpret_cast<void*>(reservation_buffer)},
                                   {Py_tp_dealloc, reinterpret_cast<void*>(reservation_dealloc)},
                                   {0, nullptr}};
PyType_Spec reservation_spec = {"asys_bench.backends.cpp_spmc._spmc.Reservation",
                                sizeof(ReservationObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                reservation_slots};

}  // namespace

bool ready(ProducerObject* self) {
  if (!same_process(self->generation)) return false;
  if (self->use == Use::idle) return true;
  PyErr_SetString(contract.bus_error,
                  "the producer is in use: by another thread (take one shard per thread), or by a "
                  "reservation that was neither committed nor aborted");
  return false;
}

void place(Producer& producer, const Header& header, u8* to, const u8* from, u64 nbytes) {
  write_header(header, to, nbytes, producer);
  if (producer.checksum()) {
    // From the source, which is in cache: streaming stores left the copy in memory.
    const u32 crc = crc32c(from, nbytes);
    std::memcpy(to - kPacketHeaderBytes + 72, &crc, 4);
    to[6 - static_cast<std::int64_t>(kPacketHeaderBytes)] = 1;
  }
  producer.copy(to, from, nbytes);
  producer.queue(nbytes, header.hook_id);
}

PyObject* new_producer(std::shared_ptr<Segment> segment, u64 shard, const CopyPolicy& policy,
                       std::optional<u64> source) {
  auto core = std::make_unique<Producer>(std::move(segment), shard, policy, source);
  auto* object = PyObject_New(ProducerObject, producer_type);
  if (object == nullptr) return nullptr;
  object->core = core.release();
  object->refusal = static_cast<unsigned>(Refusal::none);
  object->generation = fork_generation;
  object->use = Use::idle;
  return reinterpret_cast<PyObject*>(object);
}

bool add_producer_types(PyObject* module) {
  producer_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&producer_spec));
  reservation_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&reservation_spec));
  return producer_type != nullptr && reservation_type != nullptr &&
         PyModule_AddType(module, producer_type) == 0 &&
         PyModule_AddType(module, reservation_type) == 0;
}

}  // namespace spmc::py
