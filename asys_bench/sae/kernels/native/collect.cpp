// AVX-512 packs the indices of a whole vector's hits with one instruction. Elsewhere, stretches
// without any hit are passed over, and within a stretch every index is written and kept by adding
// the comparison to the count: a branch per entry would be mispredicted once per hit.
#include "collect.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#define SAE_X86 1
#endif

namespace sae {
namespace {

template <class Reaches>
inline i64 collect_portable(i64 size, i32* index, const Reaches& reaches) {
  constexpr i64 kStretch = 32;
  i64 found = 0, at = 0;
  for (; at + kStretch <= size; at += kStretch) {
    int any = 0;
    for (i64 j = 0; j < kStretch; ++j) any |= reaches(at + j);
    if (!any) continue;
    for (i64 j = 0; j < kStretch; ++j) {
      index[found] = static_cast<i32>(at + j);
      found += reaches(at + j);
    }
  }
  for (; at < size; ++at) {
    index[found] = static_cast<i32>(at);
    found += reaches(at);
  }
  return found;
}

i64 from_portable(const float* row, float limit, i64 size, i32* index) {
  return collect_portable(size, index, [=](i64 i) { return row[i] >= limit; });
}

i64 above_portable(const float* row, const float* limit, i64 size, i32* index) {
  return collect_portable(size, index, [=](i64 i) { return row[i] > limit[i]; });
}

#ifdef SAE_X86

// mask(at, lanes) compares 16 entries from `at`; lanes tells which of them exist.
template <class Mask>
__attribute__((target("avx512f"), always_inline)) inline i64 collect_512(i64 size, i32* index,
                                                                          const Mask& mask) {
  __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i step = _mm512_set1_epi32(16);
  i64 found = 0;
  for (i64 at = 0; at < size; at += 16) {
    const __mmask16 lanes = size - at >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (size - at)) - 1);
    const __mmask16 hits = mask(at, lanes);
    _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(hits, place));
    found += __builtin_popcount(hits);
    place = _mm512_add_epi32(place, step);
  }
  return found;
}

struct From512 {
  const float* row;
  __m512 limit;
  __attribute__((target("avx512f"), always_inline)) __mmask16 operator()(i64 at, __mmask16 lanes) const {
    return _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, row + at), limit, _CMP_GE_OQ);
  }
};

struct Above512 {
  const float *row, *limit;
  __attribute__((target("avx512f"), always_inline)) __mmask16 operator()(i64 at, __mmask16 lanes) const {
    return _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, row + at),
                                   _mm512_maskz_loadu_ps(lanes, limit + at), _CMP_GT_OQ);
  }
};

__attribute__((target("avx512f"))) i64 from_512(const float* row, float limit, i64 size, i32* index) {
  return collect_512(size, index, From512{row, _mm512_set1_ps(limit)});
}

__attribute__((target("avx512f"))) i64 above_512(const float* row, const float* limit, i64 size,
                                                 i32* index) {
  return collect_512(size, index, Above512{row, limit});
}

const bool kHas512 = __builtin_cpu_supports("avx512f");
const CollectFrom kFrom = kHas512 ? from_512 : from_portable;
const CollectAbove kAbove = kHas512 ? above_512 : above_portable;
#else
const CollectFrom kFrom = from_portable;
const CollectAbove kAbove = above_portable;
#endif

}  // namespace

const CollectFrom collect_from = kFrom;
const CollectAbove collect_above = kAbove;

}  // namespace sae
