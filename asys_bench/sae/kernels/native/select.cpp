// Which features of a row are active.
//
// TOP-K. A row is laid out as columns {j, j + G, j + 2G, ...}. The k-th largest of the G column
// maxima is at most the k-th largest entry, and close to it: a limit below it is found by bisection
// with vector counts, the few entries that reach it are packed, and only among them is the choice
// exact. No partial sort of F entries, and hardly a branch that depends on the data.
//
// ROUGH PRODUCTS. A bfloat16 product only finds candidates, each with a bound on how far it is from the
// float32 value. Rounding x and w to x~ and w~ moves their product by at most |x - x~| |w| + |x~| |w - w~|
// (Cauchy-Schwarz), float32 sums of D terms are off by at most D 2^-24 |x~| |w~| each (Higham 2002, section
// 3.1), and the result's own rounding by 2^-8 of it. k features are at least as large as the k-th largest
// lower bound: whoever cannot reach that is not among the k largest. All others are computed again in
// float32 from the input row and the encoder row, and chosen by that: the choice is that of float32 values.
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
// Of a rough product: 2^-8 / (1 - 2^-8) for its rounding to bfloat16, and room for what the bounds round.
constexpr float kOfProduct = 1.0f / 250, kOfBias = 0x1p-21f;
// Two sums of D terms; products that are flushed to 0 lose D 2^-126.
constexpr float kOfSums = 2.2f * 0x1p-24f, kAbsolute = 1e-33f;
// Norms are raised by their own rounding, and by squares that were flushed to 0.
constexpr float kOfNorm = 1.0f + 0x1p-9f, kFlushed = 1.1e-19f;
constexpr int kBisections = 12;
constexpr i64 kFewSurplus = 8;

// pre[0..F) of row r.
SAE_INLINE void unpack(const Product& p, i64 r, float* pre) {
  const float *from = p.exact + r * p.features, *bias = p.bias_F;
  for (i64 f = 0; f < p.features; ++f) pre[f] = from[f] + bias[f];
}

// low[f] <= the float32 pre-activation of row r <= high[f].
SAE_INLINE void unpack_bounds(const Product& p, i64 r, float* low, float* high) {
  const float missed = p.input.miss[r], norm = p.input.norm[r];
  const float slope = missed + kOfSums * static_cast<float>(p.width) * norm, reach = norm + missed;
  const u16* from = p.rough + r * p.features;
  for (i64 f = 0; f < p.features; ++f) {
    const float product = std::bit_cast<float>(static_cast<std::uint32_t>(from[f]) << 16);
    const float bias = p.bias_F[f];
    const float doubt = slope * p.weight.norm[f] + reach * p.weight.miss[f] +
                        kOfProduct * std::fabs(product) + kOfBias * std::fabs(bias) + kAbsolute;
    low[f] = product + bias - doubt;
    high[f] = product + bias + doubt;
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
  std::vector<float> pre, low, best, value, sorted;
  std::vector<i32> feature;

  void fit(i64 features) {
    const auto size = static_cast<std::size_t>(features + kLanes);
    if (pre.size() >= size) return;
    pre.resize(size), low.resize(size), best.resize(size), value.resize(size), sorted.resize(size);
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
  float *pre = scratch.pre.data(), *low = scratch.low.data(), *best = scratch.best.data();
  float* value = scratch.value.data();
  i32* feature = scratch.feature.data();
  for (i64 r = 0; r < p.rows; ++r) {
    if (p.rough)
      unpack_bounds(p, r, low, pre);
    else
      unpack(p, r, pre);
    const float* least = p.rough ? low : pre;
    for (i64 j = 0; j < G; ++j) best[j] = least[j];
    i64 at = G;
    for (; at + G <= F; at += G)
      for (i64 j = 0; j < G; ++j) best[j] = least[at + j] > best[j] ? least[at + j] : best[j];
    for (i64 j = 0; at + j < F; ++j) best[j] = least[at + j] > best[j] ? least[at + j] : best[j];

    i64 found = collect_from(pre, limit_of(best, G, k), F, feature);
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
  float *pre = scratch.pre.data(), *low = scratch.low.data(), *value = scratch.value.data();
  i32* feature = scratch.feature.data();
  i64 total = 0;
  for (i64 r = 0; r < p.rows; ++r) {
    if (p.rough)
      unpack_bounds(p, r, low, pre);
    else
      unpack(p, r, pre);
    const i64 found = collect_above(pre, floor_F, F, feature);
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

// Rounds to the nearest bfloat16, of two the even one; a NaN stays one.
SAE_CLONES void roughen(const float* source, i64 width, i64 first, i64 last, u16* out, float* norm,
                        float* miss) {
  const float flushed = kFlushed * std::sqrt(static_cast<float>(width));
  for (i64 r = first; r < last; ++r) {
    const float* from = source + r * width;
    u16* to = out + r * width;
    float square = 0, missed = 0;
#pragma omp simd reduction(+ : square, missed)
    for (i64 i = 0; i < width; ++i) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(from[i]);
      const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
      const std::uint32_t up = bits + 0x7FFFu + (bits >> 16 & 1u);
      const std::uint32_t kept = (is_nan ? bits | 0x00400000u : up) & 0xFFFF0000u;
      const float off = from[i] - std::bit_cast<float>(kept);
      to[i] = static_cast<u16>(kept >> 16);
      square += from[i] * from[i];
      missed += off * off;
    }
    norm[r] = kOfNorm * std::sqrt(square) + flushed;
    miss[r] = kOfNorm * std::sqrt(missed) + flushed;
  }
}

}  // namespace sae
