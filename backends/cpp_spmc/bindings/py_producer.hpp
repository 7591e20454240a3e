// The Python object behind a producer, and what py_capture.cpp and py_frames.cpp share with it.
#pragma once

#include "py_bridge.hpp"

namespace spmc::py {

// Pushing: inside a call that may have released the GIL. Reserved: a reservation is out.
enum class Use { idle, pushing, reserved };

struct ProducerObject {
  PyObject_HEAD
  Producer* core;
  unsigned refusal;
  int generation;
  Use use;
};

// False: it belongs to another process, or is in use; BusError is set.
bool ready(ProducerObject* self);
// Header, checksum and payload into reserved memory; the caller commits.
void place(Producer& producer, const Header& header, u8* to, const u8* from, u64 nbytes);
// `Producer.capture_port`: a CapturePort for one hook.
PyObject* new_capture_port(PyObject* producer, PyObject* args, PyObject* keywords);

}  // namespace spmc::py
