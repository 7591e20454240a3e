// What the hand-written CPython types share. They exist because a call through pybind11 costs as much
// as the push itself; everything that is not on a hot path goes through pybind11 (bindings.cpp).
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <memory>

#include "consumer.hpp"
#include "producer.hpp"

namespace spmc::py {

// Python objects of the contract, handed over once by `_spmc.setup`.
struct Contract {
  PyObject* packet_error = nullptr;
  PyObject* bus_error = nullptr;
  PyTypeObject* packet = nullptr;  // ActivationPacket
  PyObject* kinds = nullptr;       // tuple of Kind
  PyObject* dtypes = nullptr;      // tuple of torch.dtype
  PyObject* refusals = nullptr;    // tuple: FULL, TIMEOUT, TOO_LARGE, CLOSED, None
  PyObject* no_params = nullptr;
  PyObject* tensor = nullptr;      // torch.Tensor
};
extern Contract contract;
bool set_contract(PyObject* args);  // false: a Python error is set

// Rises in every forked child: what was made before the fork belongs to the parent.
extern int fork_generation;
bool same_process(int generation);  // false: BusError is set

constexpr u64 kUnlockBytes = 64 << 10;  // copies of at least this many bytes release the GIL

// ---- packets (py_packet.cpp) --------------------------------------------------------------------
template <class T>
void put(u8* header, u64 offset, T value) {
  std::memcpy(header + offset, &value, sizeof value);
}
template <class T>
T get(const u8* header, u64 offset) {
  T value;
  std::memcpy(&value, header + offset, sizeof value);
  return value;
}
struct Header {
  alignas(64) u8 bytes[kPacketHeaderBytes];
  u64 hook_id;
};
// Fill a header template from a PacketMeta. False: PacketError is set.
bool parse_meta(PyObject* meta, Header& header);
// Complete and write the header of one packet in front of its payload.
void write_header(const Header& header, u8* payload, u64 nbytes, const Producer& producer);
// False: the header of a packet of `nbytes` payload bytes is damaged, and PacketError is set.
bool check_header(const u8* header, u64 nbytes);
// A new ActivationPacket, or nullptr with an error set. `header` is untrusted.
PyObject* build_packet(const u8* header, u64 nbytes, PyObject* payload);

// The bytes of a payload object, held while this lives.
class Payload {
 public:
  ~Payload() {
    if (held_) PyBuffer_Release(&view_);
  }
  bool get(PyObject* object);         // False: PacketError is set
  bool get_rows(PyObject* object);    // 2-D: also sets rows
  const u8* data = nullptr;
  u64 nbytes = 0;
  u64 rows = 0;

 private:
  bool from_tensor(PyObject* object, bool matrix);
  Py_buffer view_{};
  bool held_ = false;
};

// A contiguous CPU tensor of a plain dtype, read without a call into Python.
struct TensorView {
  const u8* data;
  u64 nbytes;
  u8 dtype;  // code in the packet header
  u8 ndim;
  const std::int64_t* shape;  // owned by the tensor
};
// False, with no error set: not such a tensor (another class, device or layout, an unusual dtype).
bool view_tensor(PyObject* object, TensorView& out);

// ---- types --------------------------------------------------------------------------------------
bool add_producer_types(PyObject* module);
bool add_consumer_types(PyObject* module);
bool add_capture_types(PyObject* module);
PyObject* new_producer(std::shared_ptr<Segment> segment, u64 shard, const CopyPolicy& policy,
                       std::optional<u64> source);
PyObject* new_consumer(std::shared_ptr<Segment> segment, const GroupInfo& group, u64 spin_ns,
                       u64 poll_ns);

// CPython's method tables hold one function type and mean several.
template <class F>
PyCFunction as_c(F function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// Run `body` without the GIL; what it throws becomes BusError. False: an error is set.
template <class Body>
bool unlocked(Body&& body) {
  bool failed = false;
  std::string what;
  Py_BEGIN_ALLOW_THREADS;
  try {
    body();
  } catch (const std::exception& error) {
    failed = true;
    what = error.what();
  }
  Py_END_ALLOW_THREADS;
  if (failed) PyErr_SetString(contract.bus_error, what.c_str());
  return !failed;
}

}  // namespace spmc::py
