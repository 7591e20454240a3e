// Packet headers and payload bytes: PacketMeta -> 128 bytes -> ActivationPacket.
#include <dlfcn.h>

#include <cmath>
#include <cstring>

#include "dlpack_exchange.hpp"
#include "py_bridge.hpp"

#include <structmember.h>

namespace spmc::py {

namespace dlpack = asys::dlpack;
Contract contract;

namespace {

constexpr Py_ssize_t kMetaFields = 14;
constexpr unsigned kPacketFields = 19;
constexpr u32 kPacketMagic = 0x50595341;
Py_ssize_t slot_offsets[kPacketFields];  // of ActivationPacket, in field order

bool to_u64(PyObject* object, u64 most, u64& value) {
  if (PyLong_Check(object)) {
    value = PyLong_AsUnsignedLongLong(object);
  } else {
    PyObject* index = PyNumber_Index(object);
    if (index == nullptr) return false;
    value = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
  }
  return value <= most && !(value == ~0ULL && PyErr_Occurred() != nullptr);
}

bool out_of_range(PyObject* meta) {
  PyErr_Clear();
  PyErr_Format(contract.packet_error, "a header field is out of range: %R", meta);
  return false;
}

const dlpack::Exchange* exchange = nullptr;
constexpr u8 kOtherDtype = 0xFF;

// ---- what DLPack does not say of a tensor ---------------------------------------------------------
// Its data pointer is no promise: the host may have freed the storage or made it smaller, and a lazily
// negated or conjugated tensor, a zero without memory and the wrappers of functorch have the class
// torch.Tensor too. The storage's size comes from torch's stable C interface
// (torch/csrc/inductor/aoti_torch/c/shim.h), the rest from the tensor's dispatch keys. Where in an
// object the tensor and its keys are is looked up once, in tensors of known keys.
struct TensorInside {
  int (*storage_bytes)(void* tensor, std::int64_t* out) = nullptr;
  int (*storage_offset)(void* tensor, std::int64_t* out) = nullptr;
  Py_ssize_t impl = 0;   // offset in the object of the pointer that is at::Tensor
  std::size_t keys = 0;  // offset of the dispatch keys in what it points to
  u64 plain_keys = 0;    // keys that a tensor of plain host memory may have
  bool known = false;
};
TensorInside inside;
constexpr std::size_t kSearched = 176;  // bytes of a TensorImpl that are looked through; it has as many

u64 word_at(const void* base, std::size_t offset) {
  u64 word;
  std::memcpy(&word, static_cast<const u8*>(base) + offset, sizeof word);
  return word;
}

// `probes`: tuples (tensor, its address as torch says, its keys), the last one of a lazily negated tensor.
void look_inside(PyObject* probes) {
  const Py_ssize_t count = PyTuple_Check(probes) ? PyTuple_GET_SIZE(probes) : 0;
  if (count < 2) return;
  void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return;
  const auto find = [library](const char* name) { return dlsym(library, name); };
  using Getter = int (*)(void*, std::int64_t*);
  inside.storage_bytes = reinterpret_cast<Getter>(find("aoti_torch_get_storage_size"));
  inside.storage_offset = reinterpret_cast<Getter>(find("aoti_torch_get_storage_offset"));
  if (inside.storage_bytes == nullptr || inside.storage_offset == nullptr) return;
  const auto same_everywhere = [&](auto matches) {
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* probe = PyTuple_GET_ITEM(probes, i);
      PyObject* tensor = PyTuple_GET_ITEM(probe, 0);
      const u64 address = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(probe, 1));
      const u64 keys = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(probe, 2));
      if (!matches(tensor, address, keys)) return false;
    }
    return true;
  };
  auto* type = reinterpret_cast<PyTypeObject*>(contract.tensor);
  Py_ssize_t impl = static_cast<Py_ssize_t>(sizeof(PyObject));
  const auto holds_address = [&](PyObject* tensor, u64 address, u64) {
    return word_at(tensor, static_cast<std::size_t>(impl)) == address;
  };
  while (impl + 8 <= type->tp_basicsize && !same_everywhere(holds_address)) impl += 8;
  if (impl + 8 > type->tp_basicsize) return;
  std::size_t at = 0;
  const auto holds_keys = [&](PyObject*, u64 address, u64 keys) {
    return word_at(reinterpret_cast<const void*>(address), at) == keys;
  };
  while (at < kSearched && !same_everywhere(holds_keys)) at += 8;
  if (at >= kSearched) return;
  inside.impl = impl;
  inside.keys = at;
  for (Py_ssize_t i = 0; i + 1 < count; ++i)
    inside.plain_keys |=
        PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(PyTuple_GET_ITEM(probes, i), 2));
  inside.known = true;
}

// Plain host memory, nothing lazy, no wrapper.
bool is_plain_memory(PyObject* tensor) {
  const u64 impl = word_at(tensor, static_cast<std::size_t>(inside.impl));
  return (word_at(reinterpret_cast<const void*>(impl), inside.keys) & ~inside.plain_keys) == 0;
}

// Whether the storage of a contiguous tensor of `nbytes` bytes still holds them.
bool holds(PyObject* tensor, u64 itemsize, u64 nbytes) {
  void* handle = reinterpret_cast<u8*>(tensor) + inside.impl;
  std::int64_t bytes = 0, offset = 0;
  return inside.storage_bytes(handle, &bytes) == 0 && inside.storage_offset(handle, &offset) == 0 &&
         static_cast<u64>(offset) * itemsize + nbytes <= static_cast<u64>(bytes);
}

// The packet's dtype code (index in contracts.packet.DTYPES) of a DLPack type.
u8 dtype_code(u8 code, u8 bits, u16 lanes) {
  if (lanes != 1) return kOtherDtype;
  switch (code) {
    case dlpack::kFloat: return bits == 32 ? 0 : bits == 64 ? 1 : bits == 16 ? 2 : kOtherDtype;
    case dlpack::kBfloat: return bits == 16 ? 3 : kOtherDtype;
    case dlpack::kInt: return bits == 8 ? 4 : bits == 16 ? 6 : bits == 32 ? 7 : bits == 64 ? 8 : kOtherDtype;
    case dlpack::kUInt: return bits == 8 ? 5 : kOtherDtype;
    case dlpack::kBool: return bits == 8 ? 9 : kOtherDtype;
    default: return kOtherDtype;
  }
}

bool find_slots() {
  static const char* const names[kPacketFields] = {
      "seq",         "source",      "shard",  "hook_id",       "kind",       "dtype",
      "shape",       "host_step",   "timestamp_ns", "weights_version", "encoding_id", "params",
      "sampling_rate", "call_index", "microbatch", "token_position", "crc", "payload",
      "text"};
  for (unsigned i = 0; i < kPacketFields; ++i) {
    PyObject* descriptor =
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(contract.packet), names[i]);
    if (descriptor == nullptr) return false;
    const bool slot = Py_TYPE(descriptor) == &PyMemberDescr_Type;
    if (slot) slot_offsets[i] = reinterpret_cast<PyMemberDescrObject*>(descriptor)->d_member->offset;
    Py_DECREF(descriptor);
    if (!slot) {
      PyErr_Format(PyExc_TypeError, "ActivationPacket.%s is not a slot", names[i]);
      return false;
    }
  }
  return true;
}

}  // namespace

bool set_contract(PyObject* args) {
  PyObject *packet = nullptr, *probes = nullptr;
  if (!PyArg_ParseTuple(args, "OOOOOOOOO", &contract.packet_error, &contract.bus_error, &packet,
                        &contract.kinds, &contract.dtypes, &contract.refusals, &contract.no_params,
                        &contract.tensor, &probes))
    return false;
  contract.packet = reinterpret_cast<PyTypeObject*>(packet);
  Py_INCREF(args);  // the tuple keeps all of them for the life of the process
  exchange = dlpack::exchange_of(contract.tensor);
  look_inside(probes);
  return PyErr_Occurred() == nullptr && find_slots();
}

bool parse_meta(PyObject* meta, Header& header) {
  if (!PyTuple_Check(meta) || PyTuple_GET_SIZE(meta) != kMetaFields) {
    PyErr_Format(contract.packet_error, "needs a PacketMeta, got %R", meta);
    return false;
  }
  const auto item = [meta](Py_ssize_t i) { return PyTuple_GET_ITEM(meta, i); };
  u8* h = header.bytes;
  u64 value = 0;
  put<u32>(h, 0, kPacketMagic);
  put<u16>(h, 4, 1);
  put<u16>(h, 6, 0);
  if (!to_u64(item(0), 0xFFFF, header.hook_id)) return out_of_range(meta);
  put<u16>(h, 54, static_cast<u16>(header.hook_id));
  if (!to_u64(item(1), 0xFF, value)) return out_of_range(meta);
  put<u8>(h, 58, static_cast<u8>(value));
  if (!to_u64(item(2), 0xFF, value)) return out_of_range(meta);
  put<u8>(h, 59, static_cast<u8>(value));

  PyObject* shape = item(3);
  PyObject* converted = nullptr;
  if (!PyTuple_Check(shape)) {  // torch.Size is a tuple; a list is converted
    converted = PySequence_Tuple(shape);
    if (converted == nullptr) return out_of_range(meta);
    shape = converted;
  }
  const Py_ssize_t ndim = PyTuple_GET_SIZE(shape);
  bool dims_fit = ndim <= 8;
  std::memset(h + 80, 0, 32);
  for (Py_ssize_t i = 0; dims_fit && i < ndim; ++i) {
    dims_fit = to_u64(PyTuple_GET_ITEM(shape, i), 0xFFFFFFFF, value);
    put<u32>(h, 80 + static_cast<u64>(i) * 4, static_cast<u32>(value));
  }
  Py_XDECREF(converted);
  if (ndim > 8) {
    PyErr_Format(contract.packet_error, "shape has %zd dimensions; a packet holds at most 8", ndim);
    return false;
  }
  if (!dims_fit) return out_of_range(meta);
  put<u8>(h, 60, static_cast<u8>(ndim));
  if (!to_u64(item(13), 0xFF, value)) return out_of_range(meta);
  put<u8>(h, 61, static_cast<u8>(value));

  for (int i = 0; i < 3; ++i) {  // host_step, timestamp_ns, weights_version
    if (!to_u64(item(4 + i), ~0ULL, value)) return out_of_range(meta);
    put<u64>(h, 16 + static_cast<u64>(i) * 8, value);
  }
  if (!to_u64(item(7), 0xFFFF, value)) return out_of_range(meta);
  put<u16>(h, 56, static_cast<u16>(value));

  std::memset(h + 112, 0, 16);
  char* text = nullptr;
  Py_ssize_t length = 0;
  if (PyBytes_AsStringAndSize(item(8), &text, &length) != 0) return out_of_range(meta);
  std::memcpy(h + 112, text, static_cast<std::size_t>(length < 16 ? length : 16));

  const double rate = PyFloat_AsDouble(item(9));
  if (rate == -1.0 && PyErr_Occurred() != nullptr) return out_of_range(meta);
  if (std::isfinite(rate) && !std::isfinite(static_cast<float>(rate))) return out_of_range(meta);
  put<float>(h, 68, static_cast<float>(rate));
  const unsigned long call = PyLong_AsUnsignedLongMask(item(10));
  if (call == ~0UL && PyErr_Occurred() != nullptr) return out_of_range(meta);
  put<u32>(h, 64, static_cast<u32>(call));
  if (!to_u64(item(11), 0xFFFF, value)) return out_of_range(meta);
  put<u16>(h, 62, static_cast<u16>(value));
  const long token = PyLong_AsLong(item(12));
  if ((token == -1 && PyErr_Occurred() != nullptr) || token != static_cast<std::int32_t>(token))
    return out_of_range(meta);
  put<std::int32_t>(h, 76, static_cast<std::int32_t>(token));
  put<u32>(h, 72, 0);
  return true;
}

void write_header(const Header& header, u8* payload, u64 nbytes, const Producer& producer) {
  u8* h = payload - kPacketHeaderBytes;
  std::memcpy(h, header.bytes, kPacketHeaderBytes);
  put<u64>(h, 8, producer.next_seq());
  put<u64>(h, 40, nbytes);
  put<u32>(h, 48, static_cast<u32>(producer.source()));
  put<u16>(h, 52, static_cast<u16>(producer.shard()));
}

bool check_header(const u8* h, u64 nbytes) {
  const u8 ndim = get<u8>(h, 60), dtype = get<u8>(h, 59), kind = get<u8>(h, 58);
  if (get<u32>(h, 0) != kPacketMagic || get<u16>(h, 4) != 1 || ndim > 8 ||
      dtype >= PyTuple_GET_SIZE(contract.dtypes) || kind >= PyTuple_GET_SIZE(contract.kinds) ||
      get<u64>(h, 40) != nbytes) {
    PyErr_Format(contract.packet_error,
                 "damaged packet header: magic %x version %d ndim %d dtype %d kind %d, %llu payload "
                 "bytes in a frame of %llu",
                 get<u32>(h, 0), get<u16>(h, 4), ndim, dtype, kind,
                 static_cast<unsigned long long>(get<u64>(h, 40)),
                 static_cast<unsigned long long>(nbytes));
    return false;
  }
  return true;
}

PyObject* build_packet(const u8* h, u64 nbytes, PyObject* payload) {
  if (!check_header(h, nbytes)) return nullptr;
  const u8 ndim = get<u8>(h, 60), dtype = get<u8>(h, 59), kind = get<u8>(h, 58);
  PyObject* packet = contract.packet->tp_alloc(contract.packet, 0);
  if (packet == nullptr) return nullptr;
  unsigned field = 0;
  bool ok = true;
  const auto set = [&](PyObject* value) {
    ok = ok && value != nullptr;
    *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(packet) + slot_offsets[field++]) = value;
  };
  const auto integer = [](u64 value) { return PyLong_FromUnsignedLongLong(value); };
  set(integer(get<u64>(h, 8)));
  set(integer(get<u32>(h, 48)));
  set(integer(get<u16>(h, 52)));
  set(integer(get<u16>(h, 54)));
  set(Py_NewRef(PyTuple_GET_ITEM(contract.kinds, kind)));
  set(Py_NewRef(PyTuple_GET_ITEM(contract.dtypes, dtype)));
  PyObject* shape = PyTuple_New(ndim);
  for (u8 i = 0; shape != nullptr && i < ndim; ++i) {
    PyObject* dim = integer(get<u32>(h, 80 + i * 4));
    ok = ok && dim != nullptr;
    PyTuple_SET_ITEM(shape, i, dim);
  }
  set(shape);
  set(integer(get<u64>(h, 16)));
  set(integer(get<u64>(h, 24)));
  set(integer(get<u64>(h, 32)));
  set(integer(get<u16>(h, 56)));
  static const u8 zeros[16] = {};
  set(std::memcmp(h + 112, zeros, 16) == 0
          ? Py_NewRef(contract.no_params)
          : PyBytes_FromStringAndSize(reinterpret_cast<const char*>(h + 112), 16));
  set(PyFloat_FromDouble(get<float>(h, 68)));
  set(integer(get<u32>(h, 64)));
  set(integer(get<u16>(h, 62)));
  set(PyLong_FromLong(get<std::int32_t>(h, 76)));
  set((get<u16>(h, 6) & 1) != 0 ? integer(get<u32>(h, 72)) : Py_NewRef(Py_None));
  set(Py_NewRef(payload));
  set(integer(get<u8>(h, 61)));
  if (!ok) Py_CLEAR(packet);
  return packet;
}

bool view_tensor(PyObject* object, TensorView& out) {
  // The exact class: a subclass (a fake, a distributed or a quantised tensor) may hold no bytes.
  if (exchange == nullptr || !inside.known ||
      Py_TYPE(object) != reinterpret_cast<PyTypeObject*>(contract.tensor) ||
      !is_plain_memory(object))
    return false;
  dlpack::Tensor t{};
  if (exchange->view(object, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  if (t.device_type != dlpack::kCpu || t.ndim > 8) return false;
  u64 count = 1;
  for (std::int32_t i = t.ndim; i-- > 0;) {
    if (t.strides != nullptr && t.shape[i] != 1 && t.strides[i] != static_cast<std::int64_t>(count))
      return false;
    if (t.shape[i] > 0xFFFFFFFF) return false;
    count *= static_cast<u64>(t.shape[i]);
  }
  out.dtype = dtype_code(t.code, t.bits, t.lanes);
  out.nbytes = count * (t.bits / 8);
  if (out.dtype == kOtherDtype || count == 0 || !holds(object, t.bits / 8, out.nbytes)) return false;
  out.data = static_cast<const u8*>(t.data) + t.byte_offset;
  out.ndim = static_cast<u8>(t.ndim);
  out.shape = t.shape;
  return true;
}

bool Payload::from_tensor(PyObject* object, bool matrix) {
  dlpack::Tensor t{};
  if (exchange != nullptr && exchange->view(object, &t) == 0) {
    u64 count = 1;
    bool contiguous = true;
    for (std::int32_t i = t.ndim; i-- > 0;) {
      if (t.strides != nullptr && t.shape[i] != 1 && t.strides[i] != static_cast<std::int64_t>(count))
        contiguous = false;
      count *= static_cast<u64>(t.shape[i]);
    }
    const u64 item = (static_cast<u64>(t.bits) * t.lanes + 7) / 8;
    if (inside.known && t.device_type == dlpack::kCpu && contiguous && count != 0 &&
        !holds(object, item, count * item)) {
      PyErr_SetString(contract.packet_error,
                      "the tensor's memory was freed, or a part of it (its storage was resized)");
      return false;
    }
    if (t.device_type == dlpack::kCpu && (contiguous || count == 0)) {
      data = static_cast<const u8*>(t.data) + t.byte_offset;
      nbytes = count * item;
      rows = matrix && t.ndim >= 1 ? static_cast<u64>(t.shape[0]) : 0;
      return true;
    }
    PyErr_Format(contract.packet_error, "needs a contiguous CPU tensor (device type %d)",
                 t.device_type);
    return false;
  }
  PyErr_Clear();
  // A torch without the exchange table, or a dtype that it does not know: ask the tensor itself.
  PyObject* device = PyObject_GetAttrString(object, "is_cpu");
  PyObject* dense = PyObject_CallMethod(object, "is_contiguous", nullptr);
  PyObject* pointer = PyObject_CallMethod(object, "data_ptr", nullptr);
  PyObject* size = PyObject_GetAttrString(object, "nbytes");
  PyObject* item = PyObject_GetAttrString(object, "itemsize");
  bool good = device == Py_True && dense == Py_True && pointer != nullptr && size != nullptr &&
              item != nullptr;
  if (good) {
    data = static_cast<const u8*>(PyLong_AsVoidPtr(pointer));
    nbytes = PyLong_AsUnsignedLongLong(size);
    good = !inside.known || nbytes == 0 || holds(object, PyLong_AsUnsignedLongLong(item), nbytes);
    rows = matrix ? static_cast<u64>(PyObject_Length(object)) : 0;
  }
  Py_XDECREF(device);
  Py_XDECREF(dense);
  Py_XDECREF(pointer);
  Py_XDECREF(size);
  Py_XDECREF(item);
  if (good && PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();
  PyErr_SetString(contract.packet_error,
                  "needs a contiguous CPU tensor whose storage holds all of it");
  return false;
}

bool Payload::get(PyObject* object) {
  if (PyBytes_CheckExact(object)) {
    data = reinterpret_cast<const u8*>(PyBytes_AS_STRING(object));
    nbytes = static_cast<u64>(PyBytes_GET_SIZE(object));
    return true;
  }
  if (PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(contract.tensor)))
    return from_tensor(object, false);
  if (PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) != 0) {
    PyErr_Clear();
    PyErr_Format(contract.packet_error, "the payload (%s) is not a contiguous buffer or CPU tensor",
                 Py_TYPE(object)->tp_name);
    return false;
  }
  held_ = true;
  data = static_cast<const u8*>(view_.buf);
  nbytes = static_cast<u64>(view_.len);
  return true;
}

bool Payload::get_rows(PyObject* object) {
  if (PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(contract.tensor)))
    return from_tensor(object, true);
  if (PyObject_GetBuffer(object, &view_, PyBUF_ND) != 0) {
    PyErr_Clear();
    PyErr_Format(contract.packet_error, "the payloads (%s) are not a C-contiguous array",
                 Py_TYPE(object)->tp_name);
    return false;
  }
  held_ = true;
  data = static_cast<const u8*>(view_.buf);
  nbytes = static_cast<u64>(view_.len);
  rows = view_.ndim >= 1 ? static_cast<u64>(view_.shape[0]) : 0;
  return true;
}

}  // namespace spmc::py
