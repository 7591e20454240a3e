// The Python module `_kernels`. Pointers come as integers (torch's data_ptr); `sparse_kernels.py`
// checks shapes, types and contiguity before it calls. Every call gives the interpreter lock back.
#include <pybind11/pybind11.h>

#include "kernels.hpp"

namespace py = pybind11;
using namespace sae;

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Product product(Address exact, Address rough, Address bias, i64 rows, i64 features, Address input,
                Address weight, i64 width, Address input_norm, Address input_miss, Address weight_norm,
                Address weight_miss) {
  return {at<const float>(exact),
          at<const u16>(rough),
          at<const float>(bias),
          rows,
          features,
          at<const float>(input),
          at<const float>(weight),
          width,
          {at<const float>(input_norm), at<const float>(input_miss)},
          {at<const float>(weight_norm), at<const float>(weight_miss)}};
}

Decoder decoder(Address offset, Address feature, Address value, Address weight,
                Address target, Address scale, i64 width) {
  return {at<const i32>(offset),  at<const i32>(feature), at<const float>(value),
          at<const float>(weight), at<const float>(target), at<const float>(scale),
          width};
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  using Free = py::call_guard<py::gil_scoped_release>;
  m.def(
      "roughen",
      [](Address source, i64 width, i64 first, i64 last, Address out, Address norm, Address miss) {
        roughen(at<const float>(source), width, first, last, at<u16>(out), at<float>(norm),
                at<float>(miss));
      },
      Free());
  m.def(
      "top_k",
      [](Address exact, Address rough, Address bias, i64 rows, i64 features, Address input,
         Address weight, i64 width, Address input_norm, Address input_miss, Address weight_norm,
         Address weight_miss, i64 k, Address feature, Address value) {
        top_k(product(exact, rough, bias, rows, features, input, weight, width, input_norm, input_miss,
                      weight_norm, weight_miss),
              k, at<i32>(feature), at<float>(value));
      },
      Free());
  m.def(
      "above",
      [](Address exact, Address rough, Address bias, i64 rows, i64 features, Address input,
         Address weight, i64 width, Address input_norm, Address input_miss, Address weight_norm,
         Address weight_miss, Address floor, Address count, Address feature, Address value) {
        return above(product(exact, rough, bias, rows, features, input, weight, width, input_norm,
                             input_miss, weight_norm, weight_miss),
                     at<const float>(floor), at<i32>(count), at<i32>(feature), at<float>(value));
      },
      Free());
  m.def(
      "reconstruct",
      [](Address offset, Address feature, Address value, Address weight, Address target,
         Address scale, i64 width, i64 first, i64 last, Address error, Address gradient,
         Address code_gradient) {
        reconstruct(decoder(offset, feature, value, weight, target, scale, width), first, last,
                    at<float>(error), at<float>(gradient), at<float>(code_gradient));
      },
      Free());
  m.def(
      "reconstruct_nested",
      [](Address offset, Address feature, Address value, Address weight, Address target,
         Address scale, i64 width, Address widths, i64 levels, i64 batch, i64 first, i64 last,
         Address error, Address gradient, Address code_gradient) {
        reconstruct_nested(decoder(offset, feature, value, weight, target, scale, width),
                           at<const i32>(widths), levels, batch, first, last, at<float>(error),
                           at<float>(gradient), at<float>(code_gradient));
      },
      Free());
  m.def(
      "group",
      [](Address offset, Address feature, i64 batch, i64 features, Address offset_F, Address order,
         Address row) {
        group(at<const i32>(offset), at<const i32>(feature), batch, features, at<i32>(offset_F),
              at<i32>(order), at<i32>(row));
      },
      Free());
  m.def(
      "accumulate",
      [](Address offset, Address order, Address row, Address shift, Address coefficient, Address rows,
         i64 width, i64 first, i64 last, Address out, Address sum) {
        accumulate({at<const i32>(offset), at<const i32>(order), at<const i32>(row),
                    at<const i32>(shift)},
                   at<const float>(coefficient), at<const float>(rows), width, first, last,
                   at<float>(out), at<float>(sum));
      },
      Free());
  m.def(
      "take",
      [](Address table, Address slot, Address center, Address scale, i64 width, i64 first, i64 last,
         Address out) {
        take(at<const float>(table), at<const i64>(slot), at<const float>(center),
             at<const float>(scale), width, first, last, at<float>(out));
      },
      Free());
  m.def(
      "project",
      [](Address weight, i64 width, i64 first, i64 last, Address gradient, Address square) {
        project(at<const float>(weight), width, first, last, at<float>(gradient), at<double>(square));
      },
      Free());
  m.def(
      "adam",
      [](float beta1, float beta2, float epsilon, float clip, bool unit_rows, i64 width, i64 first,
         i64 last, Address rate, Address root, Address gradient, Address weight, Address mean,
         Address square) {
        return adam({beta1, beta2, epsilon, clip, unit_rows}, width, first, last,
                    at<const float>(rate), at<const float>(root), at<const float>(gradient),
                    at<float>(weight), at<float>(mean), at<float>(square));
      },
      Free());
}
