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
struct Span {
  const u8* data;
  u64 nbytes;
};
constexpr u64 kOnePiece = ~0ULL;

// Pushes the payloads `next(0)`, `next(1)`, ... until one is refused; how many. They are published in
// pieces of `piece` bytes.
template <class Next>
u64 push_each(Producer& core, const Header& header, u64 count, u64 piece, Refusal& refusal,
              Next next) {
  u64 done = 0, queued = 0;
  const auto publish = [&] {
    core.commit();
    queued = 0;
  };
  try {
    for (; done < count; ++done) {
      const Span payload = next(done);
      u8* to = core.reserve(payload.nbytes, refusal);
      if (to == nullptr && queued != 0) {  // what is queued may be what keeps the ring full
        publish();
        to = core.reserve(payload.nbytes, refusal);
      }
      if (to == nullptr) break;
      place(core, header, to, payload.data, payload.nbytes);
      queued += payload.nbytes + kPacketHeaderBytes;
      if (queued >= piece) publish();
    }
  } catch (...) {
    core.commit();  // what is queued is whole, and the next commit would publish it unasked
    throw;
  }
  core.commit();
  return done;
}
// `Producer.capture_port`: a CapturePort for one hook.
PyObject* new_capture_port(PyObject* producer, PyObject* args, PyObject* keywords);

}  // namespace spmc::py
