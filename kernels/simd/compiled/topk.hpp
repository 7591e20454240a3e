// The k largest magnitudes of each row (kernels/topk/kernel.py has the order).
//
// 1. A bar that at least k elements reach: the row is dealt into 2 k groups (or a few more), and the
//    k-th largest of the groups' maxima is one, because k groups have an element that large.
// 2. Elements that reach the bar are collected in the order of their index; of random data there are
//    about 1.4 k of them, whatever the width.
// 3. The k-th largest of those is the exact limit; of elements equal to it the first ones are kept.
//
// The k-th largest is found bit by bit, by counting: no sort, no branch that depends on the data. The
// second pass reads the row from the L1 cache and prefetches the next one. A heap and nth_element over
// candidates took 15 times as long (256 rows of 1024, k = 32).
#pragma once

#include "elements.hpp"
#include "scaled_rows.hpp"

namespace asys::simd {
namespace {

constexpr u32 kNanKey = kInfinity + 1;  // every NaN, past infinity

inline u32 key_of(float value) {
  const u32 key = bits_of(value) & kMagnitude;
  return key < kNanKey ? key : kNanKey;
}

inline Lanes::I load_keys(const u32* keys) {
  return Lanes::bits(Lanes::load(reinterpret_cast<const float*>(keys)));
}

// The largest t that at least k of the keys reach (0 if fewer than k are positive). `count` is a
// multiple of the lanes; padding is zero.
inline u32 kth_largest(const u32* keys, u64 count, u64 k) {
  u32 found = 0;
  for (u32 bit = 1u << 30; bit != 0; bit >>= 1) {
    const Lanes::I below = Lanes::spread((found | bit) - 1);
    u64 reached = 0;
    for (u64 i = 0; i < count; i += Lanes::kCount)
      reached += static_cast<u64>(__builtin_popcount(Lanes::greater(load_keys(keys + i), below)));
    if (reached >= k) found |= bit;
  }
  return found;
}

// Step 1; 0 when the row is too narrow for it to pay.
template <class T>
u32 bar_of_row(const T* x, u64 width, u64 k, u32* maxima) {
  using I = Lanes::I;
  constexpr u64 n = Lanes::kCount, step = n < 4 ? 32 : 4 * n;
  const u64 groups = (2 * k + step - 1) / step * step;
  if (width < 2 * groups) return 0;
  const I nan = Lanes::spread(kNanKey);
  for (u64 first = 0; first < groups; first += step) {
    I best[step / n];
    for (I& lane : best) lane = Lanes::spread(0u);
    for (u64 i = first; i + step <= width; i += groups)
      for (u64 v = 0; v < step / n; ++v) {
        const I key = Lanes::magnitude(Lanes::bits(Lanes::load(x + i + v * n)));
        best[v] = Lanes::max(best[v], Lanes::min(key, nan));
      }
    for (u64 v = 0; v < step / n; ++v)
      Lanes::store(reinterpret_cast<float*>(maxima) + first + v * n, Lanes::floats(best[v]));
  }
  return kth_largest(maxima, groups, k);
}

// Step 2: keys and indices of the elements that reach `bar`; how many there are.
template <class T>
u64 collect(const T* x, u64 width, u32 bar, const u8* next, u32* keys, u32* indices) {
  using I = Lanes::I;
  constexpr u64 n = Lanes::kCount;
  const I below = Lanes::spread(bar - 1);  // -1 for 0: everything reaches it
  const I nan = Lanes::spread(kNanKey);
  u64 count = 0;
  const auto visit = [&](Lanes::F v, u64 first, u32 lanes) {
    const I key = Lanes::min(Lanes::magnitude(Lanes::bits(v)), nan);
    for (u32 left = Lanes::greater(key, below) & lanes; left != 0; left &= left - 1) {
      const u64 index = first + static_cast<u64>(__builtin_ctz(left));
      keys[count] = key_of(widen(x[index]));
      indices[count++] = static_cast<u32>(index);
    }
  };
  constexpr u32 all = static_cast<u32>((1ULL << n) - 1);
  u64 i = 0;
  for (; i + n <= width; i += n) {
    Lanes::prefetch(next + i * sizeof(T));
    visit(Lanes::load(x + i), i, all);
  }
  if (i < width) visit(load_part(x + i, width - i), i, (1u << (width - i)) - 1);
  return count;
}

template <class T>
void topk_rows(const Rows& rows, const TopK& topk) {
  const u64 width = rows.width, k = topk.k;
  u32 *keys = topk.scratch, *indices = keys + width + kTopKPad, *maxima = indices + width + kTopKPad;
  const u64 value_bytes = topk.bfloat16 ? 2 : 4, index_bytes = topk.wide_index ? 4 : 2;
  u8 *values = topk.values, *places = topk.index;
  for (u64 r = 0; r < rows.count; ++r) {
    const u8* at = row_at(rows, r);
    const auto* x = reinterpret_cast<const T*>(at);
    const u8* next = r + 1 < rows.count ? row_at(rows, r + 1) : at;
    const u64 count = collect(x, width, bar_of_row(x, width, k, maxima), next, keys, indices);
    u32 limit = 0;
    u64 equal = count;  // of those equal to the limit, so many are kept
    if (count > k) {
      const u64 padded = (count + Lanes::kCount - 1) / Lanes::kCount * Lanes::kCount;
      for (u64 i = count; i < padded; ++i) keys[i] = 0;
      limit = kth_largest(keys, padded, k);
      equal = k;
      for (u64 i = 0; i < count; ++i) equal -= keys[i] > limit;
    }
    for (u64 i = 0; i < count; ++i) {
      if (keys[i] < limit || (keys[i] == limit && equal == 0)) continue;
      equal -= keys[i] == limit;
      const u32 bits = bits_of(widen(x[indices[i]]));
      if (topk.bfloat16) put(values, to_bf16(bits));
      else put(values, (bits & kMagnitude) > kInfinity ? kQuietNan : bits);
      if (topk.wide_index) put(places, indices[i]);
      else put(places, static_cast<u16>(indices[i]));
      values += value_bytes;
      places += index_bytes;
    }
  }
}

void topk(const Rows& rows, Kind kind, const TopK& what) {
  if (kind == Kind::f32) topk_rows<float>(rows, what);
  else if (kind == Kind::bf16) topk_rows<Bf16>(rows, what);
  else topk_rows<Half>(rows, what);
}

}  // namespace
}  // namespace asys::simd
