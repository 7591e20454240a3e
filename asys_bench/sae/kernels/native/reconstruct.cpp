// Decoding with its error and gradients, one row at a time: the few decoder rows of a batch row are
// read from memory for the sum and are still in the first-level cache for their scalar products.
#include "vectors.hpp"

namespace sae {
namespace {

SAE_INLINE void start_error(const Decoder& d, i64 row, float* error) {
  const float* target = d.target_BD + row * d.width;
  for (i64 i = 0; i < d.width; ++i) error[i] = -target[i];
}

SAE_INLINE void decode(const Decoder& d, i64 begin, i64 end, float* error) {
  const i32* feature = d.feature_N + begin;
  const float* value = d.value_N + begin;
  add_rows(
      end - begin, d.width, [&](i64 j) { return d.weight_FD + i64{feature[j]} * d.width; },
      [&](i64 j) { return value[j]; }, error);
}

SAE_INLINE void code_gradients(const Decoder& d, i64 begin, i64 end, const float* gradient,
                               float* out_N) {
  for (i64 j = begin; j < end; ++j)
    out_N[j] = dot(gradient, d.weight_FD + i64{d.feature_N[j]} * d.width, d.width);
}

}  // namespace

SAE_CLONES void reconstruct(const Decoder& d, i64 first, i64 last, float* error_B, float* gradient_BD,
                            float* code_gradient_N) {
  for (i64 row = first; row < last; ++row) {
    float* gradient = gradient_BD + row * d.width;
    const i64 begin = d.offset_B[row], end = d.offset_B[row + 1];
    start_error(d, row, gradient);
    decode(d, begin, end, gradient);
    error_B[row] = dot(gradient, gradient, d.width);
    const float scale = d.scale_B[row];
    for (i64 i = 0; i < d.width; ++i) gradient[i] *= scale;
    code_gradients(d, begin, end, gradient, code_gradient_N);
  }
}

SAE_CLONES void reconstruct_nested(const Decoder& d, const i32* widths, i64 levels, i64 batch, i64 first,
                                   i64 last, float* error_MB, float* gradient_MBD,
                                   float* code_gradient_N) {
  const i64 level_stride = batch * d.width;
  for (i64 row = first; row < last; ++row) {
    float* base = gradient_MBD + row * d.width;
    const i64 row_end = d.offset_B[row + 1];
    i64 begin = d.offset_B[row];
    for (i64 m = 0; m < levels; ++m) {
      float* error = base + m * level_stride;
      if (m == 0) {
        start_error(d, row, error);
      } else {
        const float* before = error - level_stride;
        for (i64 i = 0; i < d.width; ++i) error[i] = before[i];
      }
      i64 end = begin;
      while (end < row_end && d.feature_N[end] < widths[m]) ++end;
      decode(d, begin, end, error);
      error_MB[m * batch + row] = dot(error, error, d.width);
      begin = end;
    }
    const float scale = d.scale_B[row];
    i64 end = row_end;
    for (i64 m = levels - 1; m >= 0; --m) {
      float* gradient = base + m * level_stride;
      if (m == levels - 1) {
        for (i64 i = 0; i < d.width; ++i) gradient[i] *= scale;
      } else {
        const float* wider = gradient + level_stride;
        for (i64 i = 0; i < d.width; ++i) gradient[i] = gradient[i] * scale + wider[i];
      }
      const i32 least = m == 0 ? 0 : widths[m - 1];
      i64 start = end;
      while (start > d.offset_B[row] && d.feature_N[start - 1] >= least) --start;
      code_gradients(d, start, end, gradient, code_gradient_N);
      end = start;
    }
  }
}

}  // namespace sae
