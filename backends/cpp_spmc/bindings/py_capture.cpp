// The Python type `CapturePort`: one call does what a hook does for a contiguous CPU tensor.
//
// It reads the tensor, writes header and payload into the ring, commits, and keeps the hook's counters
// and its latency histogram in the stats page. It holds the GIL throughout, so calls of it exclude
// each other and a push of the producer that released the GIL shows in `use`; then, and for whatever
// else it does not do, it answers kNotMine and the general path takes over.
#include <bit>
#include <cstddef>
#include <cstring>

#include "py_capture.hpp"

#include <structmember.h>

namespace spmc::py {
namespace {

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

PyTypeObject* port_type = nullptr;

void record(std::int64_t* histogram, u64 value) {
  histogram[0] += 1;
  histogram[1] += static_cast<std::int64_t>(value);
  if (static_cast<std::int64_t>(value) > histogram[2]) histogram[2] = static_cast<std::int64_t>(value);
  histogram[3 + bucket_of(value)] += 1;
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
  TensorView tensor;
  if (!is_free(*self) || !takes(args[0], tensor)) return PyLong_FromLong(kNotMine);
  const Tags tags{PyLong_AsUnsignedLongLongMask(args[1]),
                  PyLong_AsUnsignedLongLongMask(args[2]),
                  static_cast<u32>(PyLong_AsUnsignedLongMask(args[3])),
                  static_cast<u16>(PyLong_AsUnsignedLongMask(args[4])),
                  static_cast<u32>(PyLong_AsUnsignedLongMask(args[5])),
                  static_cast<float>(PyFloat_AsDouble(args[6]))};
  if (PyErr_Occurred() != nullptr) return nullptr;
  try {
    return PyLong_FromLong(deliver(*self, tensor, tags, started));
  } catch (const Error& error) {
    PyErr_SetString(contract.bus_error, error.what());
    return nullptr;
  }
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

PyMethodDef port_methods[] = {
    {"direct", new_direct_capture, METH_O, nullptr},
    {"close", close_port, METH_NOARGS, nullptr},
    {}};
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

bool is_free(const PortObject& port) {
  const ProducerObject* producer = port.producer;
  return producer != nullptr && producer->use == Use::idle &&
         producer->generation == fork_generation;
}

bool takes(PyObject* object, TensorView& tensor) {
  return view_tensor(object, tensor) && tensor.nbytes <= kMostBytes;
}

int deliver(PortObject& port, const TensorView& tensor, const Tags& tags, u64 started) {
  u8* h = port.header.bytes;
  put<u64>(h, 16, tags.host_step);
  put<u64>(h, 24, started);
  put<u64>(h, 32, tags.weights_version);
  put<u8>(h, 59, tensor.dtype);
  put<u8>(h, 60, tensor.ndim);
  put<u16>(h, 62, tags.microbatch);
  put<u32>(h, 64, tags.call_index);
  put<float>(h, 68, tags.sampling_rate);
  put<u32>(h, 76, tags.token_position);
  std::memset(h + 80, 0, 32);
  for (u64 i = 0; i < tensor.ndim; ++i) put<u32>(h, 80 + i * 4, static_cast<u32>(tensor.shape[i]));

  Producer& core = *port.producer->core;
  Refusal refusal = Refusal::none;
  u8* to = core.reserve(tensor.nbytes, refusal);
  Cells& cells = port.cells;
  *cells.calls += 1;
  port.producer->refusal = static_cast<unsigned>(refusal);
  if (to == nullptr) {
    core.count_refusal(refusal);
    *cells.dropped += 1;
  } else {
    place(core, port.header, to, tensor.data, tensor.nbytes);
    core.commit();
    *cells.captured += 1;
    *cells.bytes += static_cast<std::int64_t>(tensor.nbytes);
  }
  record(cells.latency, monotonic_ns() - started);
  return to == nullptr ? kRefused : kAccepted;
}

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
  return port_type != nullptr && PyModule_AddType(module, port_type) == 0 &&
         add_direct_type(module) && add_hook_type(module);
}

}  // namespace spmc::py
