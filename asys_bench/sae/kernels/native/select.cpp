// Which features of a row are active.
//
// TOP-K. A row is laid out as columns {j, j + G, j + 2G, ...}. The k-th largest of the G column
// maxima is at most the k-th largest entry, and close to it: a limit below it is found by bisection
// with vector counts, the few entries that reach it are packed, and only among them is the choice
// exact. No partial sort of F entries, and hardly a branch that depends on the data.
//
// ROUGH PRODUCTS. A bfloat16 product only finds candidates. Whoever is within its error of the
// limit is computed again in float32 from the input row and the encoder row, and chosen by that, so
// the choice is (all but always) that of a float32 product at a fraction of its time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "collect.hpp"
#include "vectors.hpp"

namespace sae {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
// bfloat16 keeps 8 bits: half a unit in the last place of the output is 2^-9 of it, and the inputs'
// rounding adds about 2^-10 sqrt(|x|^2 |w|^2 / D), which is about 2^-10 for rows of unit variance.
constexpr float kRoughRelative = 1.0f / 64, kRoughAbsolute = 1.0f / 64;
constexpr int kBisections = 12;
constexpr i64 kFewSurplus = 8;

SAE_INLINE float rough_margin(float limit) {
  return kRoughRelative * std::fabs(limit) + kRoughAbsolute;
}

// pre[0..F) of row r.
SAE_INLINE void unpack(const Product& p, i64 r, float* pre) {
  const float* bias = p.bias_F;
  if (p.exact) {
    const float* from = p.exact + r * p.features;
    for (i64 f = 0; f < p.features; ++f) pre[f] = from[f] + bias[f];
  } else {
    const u16* from = p.rough + r * p.features;
    for (i64 f = 0; f < p.features; ++f)
      pre[f] = std::bit_cast<float>(static_cast<std::uint32_t>(from[f]) << 16) + bias[f];
  }
}

// value[i] = exact pre-activation of feature[i]; the encoder rows come from beyond the first cache.
SAE_INLINE void exact_values(const Product& p, i64 r, const i32* feature, i64 count, float* value) {
  const float* input = p.input_BD + r * p.width;
  for (i64 i = 0; i < count; ++i) {
    if (i + 2 < count) {
      const float* ahead = p.weight_FD + i64{feature[i + 2]} * p.width;
      for (i64 d = 0; d < p.width; d += kLanes) __builtin_prefetch(ahead + d);
    }
    const i64 f = feature[i];
    value[i] = dot(input, p.weight_FD + f * p.width, p.width) + p.bias_F[f];
  }
}

struct Scratch {
  std::vector<float> pre, best, value, sorted;
  std::vector<i32> feature;

  void fit(i64 features) {
    const auto size = static_cast<std::size_t>(features + kLanes);
    if (pre.size() >= size) return;
    pre.resize(size), best.resize(size), value.resize(size), sorted.resize(size);
    feature.resize(size);
  }
};
thread_local Scratch scratch;

// How many columns: several times k so that the maxima tell entries apart, a multiple of the vector.
i64 column_count(i64 features, i64 k) {
  const i64 wanted = std::max<i64>(64, 8 * k);
  return std::min(features, (wanted + kLanes - 1) / kLanes * kLanes);
}

// A value that at least k of the maxima reach, and not many more.
SAE_INLINE float limit_of(const float* best, i64 columns, i64 k) {
  if (k >= columns) return kLowest;
  float low = best[0], high = best[0];
  for (i64 j = 0; j < columns; ++j) {
    low = best[j] < low ? best[j] : low;
    high = best[j] > high ? best[j] : high;
  }
  for (int i = 0; i < kBisections; ++i) {
    const float middle = 0.5f * (low + high);
    i32 reached = 0;
    for (i64 j = 0; j < columns; ++j) reached += best[j] >= middle;
    if (reached >= k) {
      low = middle;
      if (reached == k) break;
    } else {
      high = middle;
    }
  }
  return low;
}

// Keep the k largest of `found` candidates, in their order; of equal ones the first.
i64 keep_largest(i64 k, i64 found, i32* feature, float* value, float* sorted) {
  if (found - k <= kFewSurplus) {
    for (; found > k; --found) {
      i64 least = found - 1;
      for (i64 i = found - 2; i >= 0; --i)
        if (value[i] < value[least]) least = i;
      std::move(feature + least + 1, feature + found, feature + least);
      std::move(value + least + 1, value + found, value + least);
    }
    return found;
  }
  std::copy(value, value + found, sorted);
  std::nth_element(sorted, sorted + (k - 1), sorted + found, std::greater<float>());
  const float least = sorted[k - 1];
  i64 equal = k;
  for (i64 i = 0; i < found; ++i) equal -= value[i] > least;
  i64 kept = 0;
  for (i64 i = 0; i < found && kept < k; ++i)
    if (value[i] > least || (value[i] == least && equal-- > 0)) {
      feature[kept] = feature[i];
      value[kept++] = value[i];
    }
  return kept;
}

}  // namespace

SAE_CLONES void top_k(const Product& p, i64 k, i32* feature_out, float* value_out) {
  const i64 F = p.features, G = column_count(F, k);
  scratch.fit(F);
  float *pre = scratch.pre.data(), *best = scratch.best.data(), *value = scratch.value.data();
  i32* feature = scratch.feature.data();
  for (i64 r = 0; r < p.rows; ++r) {
    unpack(p, r, pre);
    for (i64 j = 0; j < G; ++j) best[j] = pre[j];
    i64 at = G;
    for (; at + G <= F; at += G)
      for (i64 j = 0; j < G; ++j) best[j] = pre[at + j] > best[j] ? pre[at + j] : best[j];
    for (i64 j = 0; at + j < F; ++j) best[j] = pre[at + j] > best[j] ? pre[at + j] : best[j];

    float limit = limit_of(best, G, k);
    if (p.rough) limit -= rough_margin(limit);
    i64 found = collect_from(pre, limit, F, feature);
    if (p.rough)
      exact_values(p, r, feature, found, value);
    else
      for (i64 i = 0; i < found; ++i) value[i] = pre[feature[i]];
    if (found > k) found = keep_largest(k, found, feature, value, scratch.sorted.data());

    i32* f_out = feature_out + r * k;
    float* v_out = value_out + r * k;
    std::copy(feature, feature + found, f_out);
    std::copy(value, value + found, v_out);
    // NaN compares with nothing: such a row is filled up with it, which makes the loss NaN.
    for (i64 i = found; i < k; ++i) {
      f_out[i] = static_cast<i32>(i);
      v_out[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

SAE_CLONES i64 above(const Product& p, const float* floor_F, i32* count, i32* feature_out,
                     float* value_out) {
  const i64 F = p.features;
  scratch.fit(F);
  float *pre = scratch.pre.data(), *limit = scratch.best.data(), *value = scratch.value.data();
  i32* feature = scratch.feature.data();
  for (i64 f = 0; f < F; ++f) limit[f] = p.rough ? floor_F[f] - rough_margin(floor_F[f]) : floor_F[f];
  i64 total = 0;
  for (i64 r = 0; r < p.rows; ++r) {
    unpack(p, r, pre);
    const i64 found = collect_above(pre, limit, F, feature);
    if (p.rough)
      exact_values(p, r, feature, found, value);
    else
      for (i64 i = 0; i < found; ++i) value[i] = pre[feature[i]];
    const i64 begin = total;
    for (i64 i = 0; i < found; ++i) {
      feature_out[total] = feature[i];
      value_out[total] = value[i];
      total += value[i] > floor_F[feature[i]];
    }
    count[r] = static_cast<i32>(total - begin);
  }
  return total;
}

}  // namespace sae
