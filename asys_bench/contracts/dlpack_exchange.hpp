// The memory of a torch tensor through DLPack's exchange table (dlpack.h 1.3, torch >= 2.10), the part of
// it that is used. No attribute of the tensor is looked up, which would cost more than copying a small one.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

namespace asys::dlpack {

struct Tensor {
  void* data;
  std::int32_t device_type, device_id, ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // null: contiguous
  std::uint64_t byte_offset;
};

struct Exchange {
  std::uint32_t major, minor;
  void* previous;
  void* allocator;
  void* from_object;
  void* to_object;
  int (*view)(void* object, Tensor* out);  // borrows; not 0: an error is set
  void* stream;
};

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6;

// Where the class torch.Tensor keeps its table; null: this torch has none.
inline const Exchange* exchange_of(PyObject* tensor_type) {
  const Exchange* found = nullptr;
  PyObject* capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
  if (capsule != nullptr) {
    auto* table = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (table != nullptr && table->major == 1 && table->view != nullptr) found = table;
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  return found;
}

}  // namespace asys::dlpack
