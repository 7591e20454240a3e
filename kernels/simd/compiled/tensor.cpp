#include "tensor.hpp"

#include "dlpack_exchange.hpp"

namespace asys::simd {
namespace {

const dlpack::Exchange* exchange = nullptr;
PyTypeObject* tensor_class = nullptr;

Kind kind_of(const dlpack::Tensor& t) {
  if (t.lanes != 1) return Kind::other;
  if (t.code == dlpack::kFloat && t.bits == 32) return Kind::f32;
  if (t.code == dlpack::kFloat && t.bits == 16) return Kind::f16;
  if (t.code == dlpack::kBfloat && t.bits == 16) return Kind::bf16;
  return Kind::other;
}

}  // namespace

void find_exchange(PyObject* tensor_type) {
  tensor_class = reinterpret_cast<PyTypeObject*>(Py_NewRef(tensor_type));
  exchange = dlpack::exchange_of(tensor_type);
}

bool view_rows(PyObject* tensor, Rows& rows, Kind& kind) {
  dlpack::Tensor t{};
  if (exchange == nullptr || !PyObject_TypeCheck(tensor, tensor_class) ||
      exchange->view(tensor, &t) != 0) {
    PyErr_Clear();
    return false;
  }
  const u64 bits = static_cast<u64>(t.bits) * t.lanes;
  if (t.device_type != dlpack::kCpu || bits == 0 || bits % 8 != 0) return false;
  if (t.code == dlpack::kComplex) return false;  // its memory may be the conjugate's
  kind = kind_of(t);
  rows.itemsize = bits / 8;
  rows.base = static_cast<const u8*>(t.data) + t.byte_offset;
  rows.count = 1;
  rows.leading = 0;
  rows.positions = nullptr;
  const i32 last = t.ndim - 1;
  rows.width = last < 0 ? 1 : static_cast<u64>(t.shape[last]);
  for (i32 d = 0; d < last; ++d) rows.count *= static_cast<u64>(t.shape[d]);
  if (rows.count == 0 || rows.width == 0) return true;
  if (last >= 0 && t.strides != nullptr && rows.width != 1 && t.strides[last] != 1) return false;
  i64 dense = static_cast<i64>(rows.width);  // strides of a tensor that has none given
  for (i32 d = last - 1; d >= 0; --d) {
    const i64 stride =
        (t.strides == nullptr ? dense : t.strides[d]) * static_cast<i64>(rows.itemsize);
    dense *= t.shape[d];
    if (t.shape[d] == 1) continue;
    const u64 size = static_cast<u64>(t.shape[d]), merged = rows.leading - 1;
    if (rows.leading != 0 && stride == rows.stride[merged] * static_cast<i64>(rows.size[merged])) {
      rows.size[merged] *= size;
      continue;
    }
    if (rows.leading == kMaxLeading) return false;
    rows.size[rows.leading] = size;
    rows.stride[rows.leading++] = stride;
  }
  return true;
}

}  // namespace asys::simd
