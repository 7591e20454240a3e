// What the shortcuts of a hook share: CapturePort (py_capture.cpp), which sends what it is told to,
// DirectCapture (py_direct.cpp), which also decides whether to, and HookCall (py_hook.cpp), which is
// called by the module itself.
#pragma once

#include "py_producer.hpp"

namespace spmc::py {

// A copy of this size takes about 0.1 ms, a fiftieth of Python's own switch interval.
constexpr u64 kMostBytes = 1 << 20;
// contracts/capture_port.py: PORT_ACCEPTED, PORT_REFUSED, PORT_NOT_MINE.
constexpr int kAccepted = 0, kRefused = 1, kNotMine = 2;

// The hook's counters in the stats page.
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

struct Tags {
  u64 host_step, weights_version;
  u32 call_index;
  u16 microbatch;
  u32 token_position;
  float sampling_rate;
};

// Open, in the process that made it, and nobody is pushing.
bool is_free(const PortObject& port);
// A tensor for the port; `tensor` is then set.
bool takes(PyObject* object, TensorView& tensor);
// Write, commit and count one packet: kAccepted or kRefused. Throws Error, with nothing counted.
int deliver(PortObject& port, const TensorView& tensor, const Tags& tags, u64 started);

// `CapturePort.direct`.
PyObject* new_direct_capture(PyObject* port, PyObject* decision);
bool add_direct_type(PyObject* module);

bool is_direct_capture(PyObject* object);
// The call of a DirectCapture. No error is set.
int capture_directly(PyObject* direct, PyObject* output);
// A call outside of the hook's phase: counted, or kNotMine. No error is set.
int skip_directly(PyObject* direct);

bool add_hook_type(PyObject* module);

}  // namespace spmc::py
