// The Python type `CapturePort`: one call does what a hook does for a contiguous CPU tensor.
//
// It reads the tensor, writes header and payload into the ring, commits, and keeps the hook's counters
// and its latency histogram in the stats page. It holds the GIL throughout, so calls of it exclude
// each other and a push of the producer that released the GIL shows in `use`; then, and for whatever
// else it does not do, it answers kNotMine and the general path takes over.
#include <bit>
#include <cstddef>
#include <cstring>

#include "py_producer.hpp"

#include <structmember.h>

namespace spmc::py {
namespace {

// A copy of this size takes about 0.1 ms, a fiftieth of Python's own switch interval.
constexpr u64 kMostBytes = 1 << 20;
constexpr int kAccepted = 0, kRefused = 1, kNotMine = 2;

// contracts/stats.py: count, sum, maximum, then log-linear buckets, 16 per power of two.
constexpr unsigned kSubBucketsLog2 = 4;
constexpr u64 kBuckets = 40 << kSubBucketsLog2;
constexpr u64 kHistogramCells = 3 + kBuckets;

u64 bucket_of(u64 value) {
  if (value < (1u << kSubBucketsLog2)) return value;
  const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - kSubBucketsLog2 - 1;
  const u64 index = (static_cast<u64>(shift) << kSubBucketsLog2) + (value >> shift);
  return index < kBuckets ? index : kBuckets - 1;
}

struct Cells {
  Py_buffer view;
  std::int64_t *calls, *captured, *dropped, *bytes, *latency;
};

struct PortObject {
  PyObject_HEAD
  vectorcallfunc call;
  ProducerObject* producer;  // nullptr once closed
  Header header;
  Cells cells;
};

PyTypeObject* port_type = nullptr;

void record(std::int64_t* histogram, u64 value) {
  histogram[0] += 1;
  histogram[1] += static_cast<std::int64_t>(value);
  if (static_cast<std::int64_t>(value) > histogram[2]) histogram[2] = static_cast<std::int64_t>(value);
  histogram[3 + bucket_of(value)] += 1;
}

template <class T>
void put(u8* header, u64 offset, T value) {
  std::memcpy(header + offset, &value, sizeof value);
}

// (tensor, host_step, weights_version, call_index, microbatch, token_position, sampling_rate)
PyObject* capture(PyObject* object, PyObject* const* args, std::size_t flags, PyObject* names) {
  auto* self = reinterpret_cast<PortObject*>(object);
  if (PyVectorcall_NARGS(flags) != 7 || names != nullptr) {
    PyErr_SetString(PyExc_TypeError,
                    "needs tensor, host_step, weights_version, call_index, microbatch, "
                    "token_position, sampling_rate");
    return nullptr;
  }
  const u64 started = monotonic_ns();
  ProducerObject* producer = self->producer;
  TensorView tensor;
  if (producer == nullptr || producer->use != Use::idle ||
      producer->generation != fork_generation || !view_tensor(args[0], tensor) ||
      tensor.nbytes > kMostBytes)
    return PyLong_FromLong(kNotMine);

  u8* h = self->header.bytes;
  put<u64>(h, 16, PyLong_AsUnsignedLongLongMask(args[1]));
  put<u64>(h, 24, started);
  put<u64>(h, 32, PyLong_AsUnsignedLongLongMask(args[2]));
  put<u32>(h, 64, static_cast<u32>(PyLong_AsUnsignedLongMask(args[3])));
  put<u16>(h, 62, static_cast<u16>(PyLong_AsUnsignedLongMask(args[4])));
  put<u32>(h, 76, static_cast<u32>(PyLong_AsUnsignedLongMask(args[5])));
  put<float>(h, 68, static_cast<float>(PyFloat_AsDouble(args[6])));
  if (PyErr_Occurred() != nullptr) return nullptr;
  put<u8>(h, 59, tensor.dtype);
  put<u8>(h, 60, tensor.ndim);
  std::memset(h + 80, 0, 32);
  for (u64 i = 0; i < tensor.ndim; ++i) put<u32>(h, 80 + i * 4, static_cast<u32>(tensor.shape[i]));

  Producer& core = *producer->core;
  Refusal refusal = Refusal::none;
  u8* to = nullptr;
  try {
    to = core.reserve(tensor.nbytes, refusal);
  } catch (const Error& error) {
    PyErr_SetString(contract.bus_error, error.what());
    return nullptr;
  }
  Cells& cells = self->cells;
  *cells.calls += 1;
  producer->refusal = static_cast<unsigned>(refusal);
  if (to == nullptr) {
    core.count_refusal(refusal);
    *cells.dropped += 1;
  } else {
    place(core, self->header, to, tensor.data, tensor.nbytes);
    core.commit();
    *cells.captured += 1;
    *cells.bytes += static_cast<std::int64_t>(tensor.nbytes);
  }
  record(cells.latency, monotonic_ns() - started);
  return PyLong_FromLong(to == nullptr ? kRefused : kAccepted);
}

PyObject* close_port(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<PortObject*>(object);
  if (self->producer != nullptr) {
    PyBuffer_Release(&self->cells.view);
    Py_CLEAR(self->producer);
  }
  Py_RETURN_NONE;
}

void port_dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  Py_XDECREF(close_port(object, nullptr));
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef port_methods[] = {{"close", close_port, METH_NOARGS, nullptr}, {}};
PyMemberDef port_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(PortObject, call), READONLY, nullptr}, {}};
PyType_Slot port_slots[] = {{Py_tp_methods, port_methods},
                            {Py_tp_members, port_members},
                            {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(port_dealloc)},
                            {0, nullptr}};
PyType_Spec port_spec = {"asys_bench.backends.cpp_spmc._spmc.CapturePort", sizeof(PortObject), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                             Py_TPFLAGS_HAVE_VECTORCALL,
                         port_slots};

}  // namespace

PyObject* new_capture_port(PyObject* producer, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"meta",    "cells",   "calls", "captured",
                                "dropped", "nbytes", "latency", nullptr};
  PyObject *meta = nullptr, *page = nullptr;
  unsigned long long index[5];
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOKKKKK", const_cast<char**>(names), &meta,
                                   &page, &index[0], &index[1], &index[2], &index[3], &index[4]))
    return nullptr;
  Header header;
  if (!parse_meta(meta, header)) return nullptr;
  Py_buffer view;
  if (PyObject_GetBuffer(page, &view, PyBUF_WRITABLE | PyBUF_SIMPLE) != 0) return nullptr;
  const u64 cells = static_cast<u64>(view.len) / 8;
  bool inside = true;
  for (unsigned i = 0; i < 5; ++i)
    inside = inside && index[i] < cells && cells - index[i] >= (i == 4 ? kHistogramCells : 1);
  PortObject* port = inside ? PyObject_New(PortObject, port_type) : nullptr;
  if (port == nullptr) {
    if (!inside)
      PyErr_Format(contract.bus_error, "a metric lies outside the %llu cells of the page",
                   static_cast<unsigned long long>(cells));
    PyBuffer_Release(&view);
    return nullptr;
  }
  auto* first = static_cast<std::int64_t*>(view.buf);
  Py_INCREF(producer);
  port->call = capture;
  port->producer = reinterpret_cast<ProducerObject*>(producer);
  port->header = header;
  port->cells = {view,             first + index[0], first + index[1],
                 first + index[2], first + index[3], first + index[4]};
  return reinterpret_cast<PyObject*>(port);
}

bool add_capture_types(PyObject* module) {
  port_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&port_spec));
  return port_type != nullptr && PyModule_AddType(module, port_type) == 0;
}

}  // namespace spmc::py
