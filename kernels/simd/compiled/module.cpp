// The Python module `_simd`. Hand-written, because a call through a binding library costs as much as
// encoding a small tensor; _simd.pyi describes the functions.
#include <memory>
#include <new>

#include "elements.hpp"
#include "tensor.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace asys::simd {
namespace {

constexpr u64 kUnlockBytes = 64 << 10;  // tensors of at least this many bytes release the GIL
constexpr u64 kAlignment = 64;          // of a payload's second array (sections.py)

PyObject* packet_error = nullptr;
Level available[kMostLevels];
u64 available_count = 0;

// Copy rows into one block; a tensor without gaps is one copy.
void copy_rows(const Rows& rows, u64 row_bytes, u8* out) {
  const bool one = rows.leading == 0 ||
                   (rows.leading == 1 && rows.stride[0] == static_cast<i64>(row_bytes));
  if (rows.positions == nullptr && one) {
    std::memcpy(out, rows.base, rows.count * row_bytes);
    return;
  }
  for (u64 r = 0; r < rows.count; ++r, out += row_bytes)
    std::memcpy(out, row_at(rows, r), row_bytes);
}

u64 aligned(u64 nbytes) { return (nbytes + kAlignment - 1) / kAlignment * kAlignment; }

// The default rounding, and subnormals kept, whatever the host has set on its thread.
class FloatMode {
#ifdef __x86_64__
 public:
  FloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FloatMode() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// One call: (tensor, out, isa, positions, ...).
class Call {
 public:
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    if (out_.obj != nullptr) PyBuffer_Release(&out_);
    if (positions_.obj != nullptr) PyBuffer_Release(&positions_);
  }

  // False: return `answer()`, which is None (not a tensor for this module) or an error.
  bool open(PyObject* const* args, Py_ssize_t given, Py_ssize_t wanted, bool computes) {
    if (given != wanted) {
      PyErr_Format(PyExc_TypeError, "needs %zd arguments, got %zd", wanted, given);
      return false;
    }
    const long isa = PyLong_AsLong(args[2]);
    if (isa < 0 || static_cast<u64>(isa) >= available_count) {
      if (PyErr_Occurred() == nullptr)
        PyErr_Format(PyExc_ValueError, "no instruction set %ld here", isa);
      return false;
    }
    kernels = available[isa].kernels;
    if (!view_rows(args[0], rows, kind)) return false;
    if (computes && kind == Kind::other) return false;
    return (args[3] == Py_None || take(args[3])) &&
           PyObject_GetBuffer(args[1], &out_, PyBUF_WRITABLE) == 0;
  }

  static PyObject* answer() {
    if (PyErr_Occurred() != nullptr) return nullptr;
    Py_RETURN_NONE;
  }

  // The output, or nullptr with PacketError set when it is shorter than `nbytes`.
  u8* room(u64 nbytes) {
    if (static_cast<u64>(out_.len) >= nbytes) return static_cast<u8*>(out_.buf);
    PyErr_Format(packet_error, "the payload needs %llu bytes, %zd are reserved",
                 static_cast<unsigned long long>(nbytes), out_.len);
    return nullptr;
  }

  // Run `body`, without the GIL when there is much to read.
  template <class Body>
  void run(Body&& body) {
    if (rows.count * rows.width * rows.itemsize < kUnlockBytes) {
      FloatMode mode;
      body();
      return;
    }
    Py_BEGIN_ALLOW_THREADS;
    {
      FloatMode mode;
      body();
    }
    Py_END_ALLOW_THREADS;
  }

  Rows rows;
  Kind kind = Kind::other;
  const Kernels* kernels = nullptr;

 private:
  bool take(PyObject* object) {
    if (PyObject_GetBuffer(object, &positions_, PyBUF_SIMPLE) != 0) return false;
    const auto* positions = static_cast<const i64*>(positions_.buf);
    const u64 count = static_cast<u64>(positions_.len) / sizeof(i64);
    for (u64 i = 0; i < count; ++i)
      if (static_cast<u64>(positions[i]) >= rows.count) {  // negative ones are huge
        PyErr_Format(packet_error, "row %lld is past the %llu rows of the tensor",
                     static_cast<long long>(positions[i]),
                     static_cast<unsigned long long>(rows.count));
        return false;
      }
    rows.positions = positions;
    rows.count = count;
    return true;
  }

  Py_buffer out_{};
  Py_buffer positions_{};
};

bool number(PyObject* object, u64 most, u64& value) {
  value = PyLong_AsUnsignedLongLong(object);
  if (value == ~0ULL && PyErr_Occurred() != nullptr) return false;
  if (value <= most) return true;
  PyErr_Format(PyExc_ValueError, "%llu is more than %llu", static_cast<unsigned long long>(value),
               static_cast<unsigned long long>(most));
  return false;
}

PyObject* size(u64 nbytes) { return PyLong_FromUnsignedLongLong(nbytes); }

PyObject* gather(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call;
  if (!call.open(args, count, 4, false)) return Call::answer();
  const Rows& rows = call.rows;
  const u64 row_bytes = rows.width * rows.itemsize, nbytes = rows.count * row_bytes;
  u8* out = call.room(nbytes);
  if (out == nullptr) return nullptr;
  if (nbytes != 0) call.run([&] { copy_rows(rows, row_bytes, out); });
  return size(nbytes);
}

PyObject* cast(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call;
  u64 bfloat16 = 0;
  if (!call.open(args, count, 5, true)) return Call::answer();
  if (!number(args[4], 1, bfloat16)) return nullptr;
  const u64 nbytes = call.rows.count * call.rows.width * 2;
  u8* out = call.room(nbytes);
  if (out == nullptr) return nullptr;
  if (nbytes != 0)
    call.run([&] { call.kernels->cast(call.rows, call.kind, bfloat16 != 0, out); });
  return size(nbytes);
}

PyObject* scaled(PyObject* const* args, Py_ssize_t count,
                 void (*Kernels::*kernel)(const Rows&, Kind, u8*, u8*)) {
  Call call;
  if (!call.open(args, count, 4, true)) return Call::answer();
  const u64 elements = call.rows.count * call.rows.width;
  if (elements == 0) return size(0);
  const u64 scales = call.rows.count * sizeof(float), start = aligned(scales);
  u8* out = call.room(start + elements);
  if (out == nullptr) return nullptr;
  std::memset(out + scales, 0, start - scales);
  call.run([&] { (call.kernels->*kernel)(call.rows, call.kind, out, out + start); });
  return size(start + elements);
}

PyObject* int8(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return scaled(args, count, &Kernels::int8);
}

PyObject* fp8(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return scaled(args, count, &Kernels::fp8);
}

PyObject* topk(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call;
  u64 k = 0, bfloat16 = 0;
  if (!call.open(args, count, 6, true)) return Call::answer();
  if (!number(args[4], 1 << 24, k) || !number(args[5], 1, bfloat16)) return nullptr;
  const u64 width = call.rows.width;
  if (k > width) k = width;
  const u64 kept = call.rows.count * k;
  if (kept == 0) return size(0);
  if (width > 0xFFFFFFFF) return Call::answer();  // indices have 32 bits
  TopK what{k, bfloat16 != 0, width > 0x10000, nullptr, nullptr, nullptr};
  const u64 values = kept * (what.bfloat16 ? 2 : 4), start = aligned(values);
  const u64 nbytes = start + kept * (what.wide_index ? 4 : 2);
  u8* out = call.room(nbytes);
  if (out == nullptr) return nullptr;
  const std::unique_ptr<u32[]> scratch(new (std::nothrow) u32[topk_scratch(width, k)]);
  if (scratch == nullptr) return PyErr_NoMemory();
  what.scratch = scratch.get();
  what.values = out;
  what.index = out + start;
  std::memset(out + values, 0, start - values);
  call.run([&] { call.kernels->topk(call.rows, call.kind, what); });
  return size(nbytes);
}

PyObject* project(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call;
  u64 d_out = 0;
  if (!call.open(args, count, 6, true)) return Call::answer();
  if (!number(args[4], 1 << 20, d_out)) return nullptr;
  const u64 width = call.rows.width, nbytes = call.rows.count * d_out * sizeof(float);
  u8* out = call.room(nbytes);
  if (out == nullptr) return nullptr;
  if (nbytes == 0) return size(0);
  Py_buffer panels{};
  if (PyObject_GetBuffer(args[5], &panels, PyBUF_C_CONTIGUOUS) != 0) return nullptr;
  const u64 wanted = (d_out + kPanel - 1) / kPanel * kPanel * width * sizeof(float);
  const u64 floats = project_rows_at_once(width) * width;
  const std::unique_ptr<float[]> scratch(new (std::nothrow) float[floats + 1]);
  if (static_cast<u64>(panels.len) == wanted && scratch != nullptr) {
    const auto* matrix = static_cast<const float*>(panels.buf);
    call.run([&] {
      call.kernels->project(call.rows, call.kind, matrix, d_out, out, scratch.get());
    });
  } else {
    PyErr_Format(packet_error, "the matrix has %zd bytes, rows of %llu to %llu need %llu",
                 panels.len, static_cast<unsigned long long>(width),
                 static_cast<unsigned long long>(d_out), static_cast<unsigned long long>(wanted));
  }
  PyBuffer_Release(&panels);
  return PyErr_Occurred() == nullptr ? size(nbytes) : nullptr;
}

PyObject* sample_rows(PyObject*, PyObject* const* args, Py_ssize_t count) {
  u64 total = 0, wanted = 0, key = 0;
  if (count != 3) {
    PyErr_Format(PyExc_TypeError, "needs total, count and key, got %zd arguments", count);
    return nullptr;
  }
  if (!number(args[0], (1ULL << 31) - 1, total) || !number(args[1], total, wanted) ||
      !number(args[2], ~0ULL, key))
    return nullptr;
  PyObject* result =
      PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(wanted * sizeof(i64)));
  if (result != nullptr && wanted != 0)
    sample(total, wanted, key, reinterpret_cast<i64*>(PyByteArray_AS_STRING(result)));
  return result;
}

PyObject* read_sum(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Rows rows;
  Kind kind = Kind::other;
  u64 isa = 0;
  if (count != 2 || !number(args[1], available_count - 1, isa)) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_TypeError, "needs a tensor and isa");
    return nullptr;
  }
  if (!view_rows(args[0], rows, kind) || kind != Kind::f32 || rows.leading > 1 ||
      (rows.leading == 1 && rows.stride[0] != static_cast<i64>(rows.width * sizeof(float)))) {
    PyErr_SetString(packet_error, "needs a contiguous float32 CPU tensor");
    return nullptr;
  }
  const auto* x = reinterpret_cast<const float*>(rows.base);
  float sum = 0;
  Py_BEGIN_ALLOW_THREADS;
  sum = available[isa].kernels->read_sum(x, rows.count * rows.width);
  Py_END_ALLOW_THREADS;
  return PyFloat_FromDouble(sum);
}

PyObject* level_names(PyObject*, PyObject*) {
  PyObject* names = PyTuple_New(static_cast<Py_ssize_t>(available_count));
  for (u64 i = 0; names != nullptr && i < available_count; ++i) {
    PyObject* name = PyUnicode_FromString(available[i].name);
    if (name == nullptr) Py_CLEAR(names);
    else PyTuple_SET_ITEM(names, static_cast<Py_ssize_t>(i), name);
  }
  return names;
}

PyObject* setup(PyObject*, PyObject* args) {
  PyObject *error = nullptr, *tensor_type = nullptr;
  if (!PyArg_ParseTuple(args, "OO", &error, &tensor_type)) return nullptr;
  Py_XSETREF(packet_error, Py_NewRef(error));
  find_exchange(tensor_type);
  Py_RETURN_NONE;
}

template <class F>
PyMethodDef fast(const char* name, F function) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
          METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    {"setup", setup, METH_VARARGS, nullptr},
    {"levels", level_names, METH_NOARGS, nullptr},
    fast("gather", gather),
    fast("cast", cast),
    fast("int8", int8),
    fast("fp8", fp8),
    fast("topk", topk),
    fast("project", project),
    fast("sample", sample_rows),
    fast("read_sum", read_sum),
    {},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_simd",
                          "Payloads written with vector instructions; see _simd.pyi", -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace asys::simd

PyMODINIT_FUNC PyInit__simd() {
  using namespace asys::simd;
  available_count = levels(available);
  packet_error = Py_NewRef(PyExc_ValueError);  // until setup() names the real one
  return PyModule_Create(&definition);
}
