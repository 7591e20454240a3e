// Frames, headers and payloads, of many packets in one call: out of a lease, into a producer.
#pragma once

#include "py_producer.hpp"

namespace spmc::py {

// False: the claim points outside its arena, and BusError is set.
bool lies_in_arena(const Claim& claim);
// `Lease.headers`: the bytes of all headers, or nullptr with an error set.
PyObject* headers_of(const std::vector<Claim>& claims);
// `Lease.copy_frames`: None, or nullptr with an error set.
PyObject* copy_frames(const std::vector<Claim>& claims, PyObject* args, PyObject* keywords);
// `Producer.try_push_frames`.
PyObject* try_push_frames(PyObject* producer, PyObject* args, PyObject* keywords);

}  // namespace spmc::py
