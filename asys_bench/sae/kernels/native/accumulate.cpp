// From rows to features: grouping pairs by feature, and the weight gradients as sums over groups.
#include <algorithm>

#include "vectors.hpp"

namespace sae {

void group(const i32* offset_B, const i32* feature_N, i64 batch, i64 features, i32* offset_F,
           i32* order_N, i32* row_N) {
  std::fill(offset_F, offset_F + features + 1, 0);
  const i64 pairs = offset_B[batch];
  for (i64 i = 0; i < pairs; ++i) ++offset_F[feature_N[i] + 1];
  for (i64 f = 0; f < features; ++f) offset_F[f + 1] += offset_F[f];
  // offset_F[f] serves as f's cursor and ends as the start of f + 1: shifted back afterwards.
  for (i64 row = 0; row < batch; ++row)
    for (i64 i = offset_B[row]; i < offset_B[row + 1]; ++i) {
      const i32 at = offset_F[feature_N[i]]++;
      order_N[at] = static_cast<i32>(i);
      row_N[at] = static_cast<i32>(row);
    }
  for (i64 f = features; f > 0; --f) offset_F[f] = offset_F[f - 1];
  offset_F[0] = 0;
}

SAE_CLONES void accumulate(const FeatureMajor& g, const float* coefficient_N, const float* rows_BD,
                           i64 width, i64 first, i64 last, float* out_FD, float* sum_F) {
  for (i64 f = first; f < last; ++f) {
    const i64 begin = g.offset_F[f], count = g.offset_F[f + 1] - begin;
    const i32* order = g.order_N + begin;
    const i32* row = g.row_N + begin;
    const float* base = rows_BD + (g.shift_F ? i64{g.shift_F[f]} * width : 0);
    float* out = out_FD + f * width;
    std::fill(out, out + width, 0.0f);
    add_rows(
        count, width, [&](i64 i) { return base + i64{row[i]} * width; },
        [&](i64 i) { return coefficient_N[order[i]]; }, out);
    double sum = 0;
    for (i64 i = 0; i < count; ++i) sum += coefficient_N[order[i]];
    sum_F[f] = static_cast<float>(sum);
  }
}

SAE_CLONES void take(const float* table, const i64* slot, const float* center_D, const float* scale_D,
                     i64 width, i64 first, i64 last, float* out) {
  for (i64 b = first; b < last; ++b) {
    const float* row = table + (slot ? slot[b] : b) * width;
    if (slot && b + 4 < last) {
      const float* ahead = table + slot[b + 4] * width;
      for (i64 i = 0; i < width; i += kLanes) __builtin_prefetch(ahead + i);
    }
    float* to = out + b * width;
    for (i64 i = 0; i < width; ++i) to[i] = (row[i] - center_D[i]) * scale_D[i];
  }
}

}  // namespace sae
