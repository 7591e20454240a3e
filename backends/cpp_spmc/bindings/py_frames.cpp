#include "py_frames.hpp"

#include <cstring>

namespace spmc::py {
namespace {

// A buffer that Python holds, for as long as this lives.
struct Held {
  Py_buffer view{};
  bool held = false;
  ~Held() {
    if (held) PyBuffer_Release(&view);
  }
  bool get(PyObject* object, int flags) {
    held = PyObject_GetBuffer(object, &view, flags) == 0;
    return held;
  }
};

struct Place {
  std::int64_t first, second;
};

// An array of int64, [n, 2], C-contiguous.
class Places : Held {
 public:
  bool get(PyObject* object) {
    if (!Held::get(object, PyBUF_C_CONTIGUOUS)) return false;
    if (view.ndim == 2 && view.itemsize == 8 && view.shape[1] == 2) return true;
    PyErr_SetString(PyExc_ValueError, "places must be a C-contiguous array of int64, [n, 2]");
    return false;
  }
  u64 size() const { return static_cast<u64>(view.shape[0]); }
  const Place& operator[](u64 i) const { return static_cast<const Place*>(view.buf)[i]; }
};

// Whether `bytes` bytes from `at` lie in `room` bytes; sets ValueError.
bool fits(std::int64_t at, u64 bytes, u64 room) {
  if (at >= 0 && static_cast<u64>(at) <= room && bytes <= room - static_cast<u64>(at)) return true;
  PyErr_Format(PyExc_ValueError, "a frame of %llu bytes at %lld in %llu bytes",
               static_cast<unsigned long long>(bytes), static_cast<long long>(at),
               static_cast<unsigned long long>(room));
  return false;
}

// The ring's header of a packet whose payload is `frame`.
void describe(Header& header, const u8* frame, u64 nbytes) {
  const u16 hook = get<u16>(frame, 54);
  header.hook_id = hook;
  put<u16>(header.bytes, 54, hook);
  put<u8>(header.bytes, 58, frame[58]);
  put<u32>(header.bytes, 80, static_cast<u32>(nbytes));
}

bool all_fit(const Places& places, const Payload& data) {
  for (u64 i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    if (place.second < static_cast<std::int64_t>(kPacketHeaderBytes)) {
      PyErr_Format(PyExc_ValueError, "a frame of %lld bytes: its header has %llu",
                   static_cast<long long>(place.second),
                   static_cast<unsigned long long>(kPacketHeaderBytes));
      return false;
    }
    if (!fits(place.first, static_cast<u64>(place.second), data.nbytes)) return false;
  }
  return true;
}

}  // namespace

bool lies_in_arena(const Claim& claim) {
  if (claim.frame != nullptr) return true;
  PyErr_Format(contract.bus_error,
               "packet %llu of shard %u points outside its arena: the segment is damaged",
               static_cast<unsigned long long>(claim.seq), claim.shard);
  return false;
}

PyObject* headers_of(const std::vector<Claim>& claims) {
  const auto bytes = static_cast<Py_ssize_t>(claims.size() * kPacketHeaderBytes);
  PyObject* found = PyBytes_FromStringAndSize(nullptr, bytes);
  if (found == nullptr) return nullptr;
  auto* to = reinterpret_cast<u8*>(PyBytes_AS_STRING(found));
  for (const Claim& claim : claims) {
    if (lies_in_arena(claim)) {
      std::memcpy(to, claim.frame, kPacketHeaderBytes);
      if (check_header(to, claim.nbytes)) {
        to += kPacketHeaderBytes;
        continue;
      }
    }
    Py_DECREF(found);
    return nullptr;
  }
  return found;
}

PyObject* copy_frames(const std::vector<Claim>& claims, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"out", "places", nullptr};
  PyObject *out = nullptr, *where = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO", const_cast<char**>(names), &out, &where))
    return nullptr;
  Held to;
  Places places;
  if (!to.get(out, PyBUF_WRITABLE) || !places.get(where)) return nullptr;
  u64 total = 0;
  for (u64 i = 0; i < places.size(); ++i) {
    const Place& place = places[i];
    if (place.first < 0 || static_cast<u64>(place.first) >= claims.size()) {
      PyErr_Format(PyExc_ValueError, "no packet %lld: the lease has %zu",
                   static_cast<long long>(place.first), claims.size());
      return nullptr;
    }
    const Claim& claim = claims[static_cast<std::size_t>(place.first)];
    const u64 bytes = kPacketHeaderBytes + claim.nbytes;
    if (!lies_in_arena(claim) || !fits(place.second, bytes, static_cast<u64>(to.view.len)))
      return nullptr;
    total += bytes;
  }
  const auto copy = [&] {
    auto* base = static_cast<u8*>(to.view.buf);
    for (u64 i = 0; i < places.size(); ++i) {
      const Claim& claim = claims[static_cast<std::size_t>(places[i].first)];
      std::memcpy(base + places[i].second, claim.frame, kPacketHeaderBytes + claim.nbytes);
    }
  };
  if (total < kUnlockBytes) copy();
  else if (!unlocked(copy)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* try_push_frames(PyObject* object, PyObject* args, PyObject* keywords) {
  static const char* names[] = {"meta", "data", "places", nullptr};
  auto* self = reinterpret_cast<ProducerObject*>(object);
  PyObject *meta = nullptr, *from = nullptr, *where = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO", const_cast<char**>(names), &meta, &from,
                                   &where))
    return nullptr;
  if (!ready(self)) return nullptr;
  Header header;
  Payload data;
  Places places;
  if (!parse_meta(meta, header) || !data.get(from) || !places.get(where) || !all_fit(places, data))
    return nullptr;
  header.bytes[60] = 1;  // one dimension: bytes
  std::memset(header.bytes + 80, 0, 32);
  u64 done = 0;
  Refusal refusal = Refusal::none;
  const auto frame = [&](u64 i) {
    const Span found{data.data + places[i].first, static_cast<u64>(places[i].second)};
    describe(header, found.data, found.nbytes);
    return found;
  };
  self->use = Use::pushing;
  const bool good = unlocked([&] {
    done = push_each(*self->core, header, places.size(), kOnePiece, refusal, frame);
  });
  self->use = Use::idle;
  if (!good) return nullptr;
  self->refusal = static_cast<unsigned>(refusal);
  if (refusal != Refusal::none) self->core->count_refusal(refusal);
  return PyLong_FromUnsignedLongLong(done);
}

}  // namespace spmc::py
