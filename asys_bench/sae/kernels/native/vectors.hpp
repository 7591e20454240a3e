// Sixteen floats at a time in the compiler's own vector type: it becomes AVX-512, AVX or SSE code in
// the clone that is compiled, and sums keep one order on each of them.
#pragma once

#include "kernels.hpp"

namespace sae {

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));

constexpr i64 kLanes = 16;
constexpr int kChunk = 8;  // vectors kept in registers at once: half of AVX-512's
constexpr i64 kChunkFloats = kChunk * kLanes;

#define SAE_INLINE inline __attribute__((always_inline))

SAE_INLINE float sum(v16 v) {
  float s[8], q[4];
  for (int i = 0; i < 8; ++i) s[i] = v[i] + v[i + 8];
  for (int i = 0; i < 4; ++i) q[i] = s[i] + s[i + 4];
  return (q[0] + q[2]) + (q[1] + q[3]);
}

SAE_INLINE const v16& load(const float* p) { return *reinterpret_cast<const v16*>(p); }
SAE_INLINE v16& store(float* p) { return *reinterpret_cast<v16*>(p); }

SAE_INLINE float dot(const float* a, const float* b, i64 n) {
  v16 s0{}, s1{}, s2{}, s3{};
  i64 i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + 16) * load(b + i + 16);
    s2 += load(a + i + 32) * load(b + i + 32);
    s3 += load(a + i + 48) * load(b + i + 48);
  }
  for (; i + kLanes <= n; i += kLanes) s0 += load(a + i) * load(b + i);
  float tail = 0;
  for (; i < n; ++i) tail += a[i] * b[i];
  return sum((s0 + s1) + (s2 + s3)) + tail;
}

// out[0..n) += sum over i < count of coefficient(i) * source(i)[0..n), where source(i) is a row.
// The sums of a stretch of the row stay in registers while the rows stream past.
template <int N, class Source, class Coefficient>
SAE_INLINE void add_rows_stretch(i64 count, i64 at, const Source& source, const Coefficient& coefficient,
                                 float* out) {
  v16 acc[N];
#pragma GCC unroll 8
  for (int c = 0; c < N; ++c) acc[c] = load(out + at + c * kLanes);
  for (i64 i = 0; i < count; ++i) {
    const float* row = source(i) + at;
    if (i + 2 < count) {
      const float* ahead = source(i + 2) + at;
#pragma GCC unroll 8
      for (int c = 0; c < N; ++c) __builtin_prefetch(ahead + c * kLanes);
    }
    const float a = coefficient(i);
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) acc[c] += a * load(row + c * kLanes);
  }
#pragma GCC unroll 8
  for (int c = 0; c < N; ++c) store(out + at + c * kLanes) = acc[c];
}

template <class Source, class Coefficient>
SAE_INLINE void add_rows(i64 count, i64 width, const Source& source, const Coefficient& coefficient,
                         float* out) {
  i64 at = 0;
  for (; at + kChunkFloats <= width; at += kChunkFloats)
    add_rows_stretch<kChunk>(count, at, source, coefficient, out);
  for (; at + kLanes <= width; at += kLanes) add_rows_stretch<1>(count, at, source, coefficient, out);
  if (at == width) return;
  for (i64 i = 0; i < count; ++i) {
    const float* row = source(i);
    const float a = coefficient(i);
    for (i64 d = at; d < width; ++d) out[d] += a * row[d];
  }
}

}  // namespace sae
