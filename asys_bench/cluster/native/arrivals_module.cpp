// The Python module `_arrivals`: `take` is what `arrivals.checked` does with arrays, in one pass over the
// headers. It accepts or declines, and has changed nothing where it declines: `checked` then says by name
// what is wrong. So nothing here decides that a peer is refused, and arrivals.py is its reference.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

constexpr u64 kLine = 64, kHeader = 128;
constexpr u64 kTable = 32, kEntry = 8, kMostPackets = 1 << 16;  // cluster/wire.py
constexpr u32 kMagic = 0x50595341;                              // contracts/packet.py
constexpr u16 kVersion = 1;
constexpr u8 kMostDims = 8;
constexpr u64 kMostSeq = (1ULL << 40) - 1, kMost = (1ULL << 63) - 1;

template <class T>
T get(const u8* from, u64 offset) {
  T value;
  std::memcpy(&value, from + offset, sizeof value);
  return value;
}
template <class T>
void put(u8* to, u64 offset, T value) {
  std::memcpy(to + offset, &value, sizeof value);
}

u64 aligned(u64 bytes) { return (bytes + kLine - 1) & ~(kLine - 1); }

// A buffer that Python holds, for as long as this lives.
struct Held {
  Py_buffer view{};
  bool held = false;
  ~Held() {
    if (held) PyBuffer_Release(&view);
  }
  u8* bytes() const { return static_cast<u8*>(view.buf); }
  u64 size() const { return static_cast<u64>(view.len); }
};

struct Packet {
  u64 at, bytes, seq, shift;
  PyObject* writer;  // of the connection, which keeps it
  long shard;
  u16 hook, encoding;
};

struct Limits {
  i64 max_packet, clock_ns, offset_ns;
  bool has_offset;
  u8 dtypes, kinds;
};

// What a connection has named. Each keeps its last answer: packets in a row have the same ids.
class Names {
 public:
  explicit Names(PyObject* names) : names_(names) {}
  bool find(u16 id, u16& found) {
    if (id != last_) {
      PyObject* key = PyLong_FromLong(id);
      PyObject* value = key == nullptr ? nullptr : PyDict_GetItemWithError(names_, key);
      Py_XDECREF(key);
      const long number = value == nullptr ? -1 : PyLong_AsLong(value);
      if (number < 0 || number > 0xFFFF) return false;
      last_ = id;
      answer_ = static_cast<u16>(number);
    }
    found = answer_;
    return true;
  }

 private:
  PyObject* names_;
  long last_ = -1;
  u16 answer_ = 0;
};

class Writers {
 public:
  explicit Writers(PyObject* writers) : writers_(writers) {}
  bool find(u32 source, u16 shard, Packet& packet) {
    if (writer_ == nullptr || source != source_ || shard != shard_) {
      PyObject* key = Py_BuildValue("(IH)", source, shard);
      writer_ = key == nullptr ? nullptr : PyDict_GetItemWithError(writers_, key);
      Py_XDECREF(key);
      if (writer_ == nullptr || !PyTuple_Check(writer_) || PyTuple_GET_SIZE(writer_) != 3)
        return false;
      here_ = PyLong_AsLong(PyTuple_GET_ITEM(writer_, 1));
      shift_ = PyLong_AsUnsignedLongLongMask(PyTuple_GET_ITEM(writer_, 2));
      source_ = source;
      shard_ = shard;
    }
    packet.writer = writer_;
    packet.shard = here_;
    packet.shift = shift_;
    return PyErr_Occurred() == nullptr;
  }

 private:
  PyObject* writers_;
  PyObject* writer_ = nullptr;
  u32 source_ = 0;
  u16 shard_ = 0;
  long here_ = 0;
  u64 shift_ = 0;
};

// The table: packets one after the other, each at the next line, the last one at the end of the message.
bool read_table(const Held& data, std::vector<Packet>& packets) {
  if (data.size() < kTable) return false;
  const u64 count = get<u32>(data.bytes(), 24);
  const u64 start = aligned(kTable + kEntry * count);
  if (count == 0 || count > kMostPackets || get<u32>(data.bytes(), 28) != 0 ||
      get<u64>(data.bytes(), 16) > kMost || start > data.size())
    return false;
  packets.resize(count);
  u64 at = start;
  for (u64 i = 0; i < count; ++i) {
    const u8* entry = data.bytes() + kTable + kEntry * i;
    const u64 bytes = get<u32>(entry, 4);
    if (get<u32>(entry, 0) != at || bytes < kHeader || bytes > data.size() - at) return false;
    packets[i].at = at;
    packets[i].bytes = bytes;
    at += aligned(bytes);
    if (at > data.size()) return false;
  }
  return at == data.size();
}

bool is_sound(const u8* header, u64 bytes, const Limits& limits) {
  return get<u32>(header, 0) == kMagic && get<u16>(header, 4) == kVersion &&
         get<u16>(header, 6) <= 1 && get<u64>(header, 40) == bytes - kHeader &&
         get<u64>(header, 8) <= kMostSeq && get<u64>(header, 16) <= kMost &&
         get<u64>(header, 24) <= kMost && header[58] < limits.kinds &&
         header[59] < limits.dtypes && header[60] <= kMostDims;
}

// Headers are sound and name what the connection has named.
bool read_headers(const Held& data, const Limits& limits, Names& hooks, Names& encodings,
                  Writers& writers, std::vector<Packet>& packets) {
  for (Packet& packet : packets) {
    const u8* header = data.bytes() + packet.at;
    if (!is_sound(header, packet.bytes, limits)) return false;
    packet.seq = get<u64>(header, 8);
    if (!hooks.find(get<u16>(header, 54), packet.hook) ||
        !encodings.find(get<u16>(header, 56), packet.encoding) ||
        !writers.find(get<u32>(header, 48), get<u16>(header, 52), packet))
      return false;
  }
  return true;
}

// This bus's ids, this node's time, seqs that go on. Returns the last stamp, 0 for none.
u64 rewrite(const Held& data, const Limits& limits, const std::vector<Packet>& packets) {
  const u64 latest =
      std::min(static_cast<u64>(limits.clock_ns) - static_cast<u64>(limits.offset_ns), kMost);
  u64 last = 0;
  for (const Packet& packet : packets) {
    u8* header = data.bytes() + packet.at;
    if (const u64 time = get<u64>(header, 24); time != 0) {
      const i64 here = static_cast<i64>(std::min(time, latest)) + limits.offset_ns;
      last = static_cast<u64>(std::max<i64>(1, here));
      put<u64>(header, 24, last);
    }
    put<u64>(header, 8, packet.seq + packet.shift);
    put<u16>(header, 54, packet.hook);
    put<u16>(header, 56, packet.encoding);
  }
  return last;
}

// A list of (writer, first seq, start, stop, whether the bus takes packets of that size).
PyObject* runs_of(const std::vector<Packet>& packets, const Limits& limits) {
  PyObject* runs = PyList_New(0);
  const auto fits = [&](u64 i) { return static_cast<i64>(packets[i].bytes) <= limits.max_packet; };
  for (u64 start = 0; runs != nullptr && start < packets.size();) {
    u64 stop = start + 1;
    while (stop < packets.size() && packets[stop].seq == packets[stop - 1].seq + 1 &&
           packets[stop].shard == packets[start].shard && fits(stop) == fits(start))
      ++stop;
    PyObject* run = Py_BuildValue("(OKKKO)", packets[start].writer,
                                  static_cast<unsigned long long>(packets[start].seq),
                                  static_cast<unsigned long long>(start),
                                  static_cast<unsigned long long>(stop),
                                  fits(start) ? Py_True : Py_False);
    if (run == nullptr || PyList_Append(runs, run) != 0) Py_CLEAR(runs);
    Py_XDECREF(run);
    start = stop;
  }
  return runs;
}

// [n, 2] of int64, as bytes: where each packet begins, and its bytes.
PyObject* places_of(const std::vector<Packet>& packets) {
  PyObject* places =
      PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(16 * packets.size()));
  if (places == nullptr) return nullptr;
  auto* to = reinterpret_cast<u8*>(PyBytes_AS_STRING(places));
  for (const Packet& packet : packets) {
    put<u64>(to, 0, packet.at);
    put<u64>(to, 8, packet.bytes);
    to += 16;
  }
  return places;
}

// n + 1 sums of packets' bytes.
PyObject* ends_of(const std::vector<Packet>& packets) {
  PyObject* ends = PyList_New(static_cast<Py_ssize_t>(packets.size() + 1));
  u64 end = 0;
  for (Py_ssize_t i = 0; ends != nullptr && i < PyList_GET_SIZE(ends); ++i) {
    PyObject* value = PyLong_FromUnsignedLongLong(end);
    if (value == nullptr) Py_CLEAR(ends);
    else PyList_SET_ITEM(ends, i, value);
    if (static_cast<u64>(i) < packets.size()) end += packets[static_cast<u64>(i)].bytes;
  }
  return ends;
}

PyObject* decline() {
  PyErr_Clear();
  Py_RETURN_NONE;
}

bool read_limits(PyObject* const* args, Limits& limits) {
  limits.max_packet = PyLong_AsLongLong(args[4]);
  limits.clock_ns = PyLong_AsLongLong(args[5]);
  limits.has_offset = args[6] != Py_None;
  limits.offset_ns = limits.has_offset ? PyLong_AsLongLong(args[6]) : 0;
  limits.dtypes = static_cast<u8>(PyLong_AsLong(args[7]));
  limits.kinds = static_cast<u8>(PyLong_AsLong(args[8]));
  return PyErr_Occurred() == nullptr && limits.clock_ns >= 0;
}

// (data, hooks, encodings, writers, max_packet, clock_ns, offset_ns or None, dtypes, kinds): see the .pyi
PyObject* take(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 9 || !PyDict_Check(args[1]) || !PyDict_Check(args[2]) || !PyDict_Check(args[3])) {
    PyErr_SetString(PyExc_TypeError, "take needs a message, three dicts and five numbers");
    return nullptr;
  }
  Limits limits{};
  if (!read_limits(args, limits)) return decline();
  Held data;
  data.held = PyObject_GetBuffer(args[0], &data.view, PyBUF_WRITABLE) == 0;
  std::vector<Packet> packets;
  Names hooks(args[1]), encodings(args[2]);
  Writers writers(args[3]);
  if (!data.held || !read_table(data, packets) ||
      !read_headers(data, limits, hooks, encodings, writers, packets))
    return decline();
  PyObject* runs = runs_of(packets, limits);
  PyObject* places = places_of(packets);
  PyObject* ends = ends_of(packets);
  if (runs == nullptr || places == nullptr || ends == nullptr) {
    Py_XDECREF(runs);
    Py_XDECREF(places);
    Py_XDECREF(ends);
    return nullptr;
  }
  const i64 offset = limits.clock_ns - static_cast<i64>(get<u64>(data.bytes(), 16));
  limits.offset_ns = limits.has_offset ? std::min(offset, limits.offset_ns) : offset;
  u64 step = 0;
  for (const Packet& packet : packets)
    step = std::max(step, get<u64>(data.bytes() + packet.at, 16));
  const u64 last = rewrite(data, limits, packets);
  PyObject* lag = last == 0 ? Py_NewRef(Py_None)
                            : PyLong_FromLongLong(limits.clock_ns - static_cast<i64>(last));
  return Py_BuildValue("(LNNNKN)", static_cast<long long>(limits.offset_ns), places, ends, runs,
                       static_cast<unsigned long long>(step), lag);
}

PyMethodDef methods[] = {
    {"take", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(take)), METH_FASTCALL,
     "take(data, hooks, encodings, writers, max_packet, clock_ns, offset_ns, dtypes, kinds): what "
     "arrivals.checked finds, with the headers rewritten; None, and nothing changed: it does not fit."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_arrivals", "The check of a batch.", 0, methods,
                      nullptr,               nullptr,     nullptr,                 nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__arrivals() { return PyModule_Create(&module); }
