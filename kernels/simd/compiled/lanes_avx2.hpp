// Eight elements at a time: AVX2 and F16C.
#pragma once

#include <immintrin.h>

#include "elements.hpp"

namespace asys::simd {
namespace {

struct Lanes {
  using F = __m256;
  using I = __m256i;
  static constexpr u64 kCount = 8;
  static constexpr u64 kProjectRows = 2, kProjectLanes = 4;

  static __m128i load_words(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const Bf16* p) {
    return floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_words(p)), 16));
  }
  static F load(const Half* p) { return _mm256_cvtph_ps(load_words(p)); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F spread(float v) { return _mm256_set1_ps(v); }
  static I spread(u32 v) { return _mm256_set1_epi32(static_cast<i32>(v)); }
  static I bits(F v) { return _mm256_castps_si256(v); }
  static F floats(I v) { return _mm256_castsi256_ps(v); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static I nearest(F v) { return _mm256_cvtps_epi32(v); }
  static I magnitude(I v) { return _mm256_and_si256(v, spread(kMagnitude)); }
  static I max(I a, I b) { return _mm256_max_epi32(a, b); }
  static I min(I a, I b) { return _mm256_min_epi32(a, b); }
  static I plus(I a, I b) { return _mm256_add_epi32(a, b); }
  static I minus(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I both(I a, I b) { return _mm256_and_si256(a, b); }
  static I either(I a, I b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static I right(I v) {
    return _mm256_srli_epi32(v, kBits);
  }
  static I if_less(I a, I b, I yes, I no) {
    return _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(b, a));
  }
  static u32 greater(I a, I b) {
    return static_cast<u32>(_mm256_movemask_ps(floats(_mm256_cmpgt_epi32(a, b))));
  }
  static u32 largest(I v) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return static_cast<u32>(_mm_cvtsi128_si32(m));
  }
  static float total(F v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static void prefetch(const u8* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

  // Streaming stores need whole lines, and a fence before anybody else may see them.
  static constexpr bool kStreams = true;
  static void fence() { _mm_sfence(); }
  template <bool kStream = false>
  static void put_all(I v, u8* to) {
    if (kStream) _mm256_stream_si256(reinterpret_cast<I*>(to), v);
    else _mm256_storeu_si256(reinterpret_cast<I*>(to), v);
  }
  // Packing works within 128-bit halves; this brings the dwords a0 b0 c0 d0 a1 b1 c1 d1 in order.
  static I in_order(I v) {
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  template <bool kStream>
  static void put_signed_bytes(I a, I b, I c, I d, u8* to) {
    const I words = _mm256_packs_epi32(a, b), more = _mm256_packs_epi32(c, d);
    put_all<kStream>(in_order(_mm256_packs_epi16(words, more)), to);
  }
  template <bool kStream>
  static void put_unsigned_bytes(I a, I b, I c, I d, u8* to) {
    const I words = _mm256_packus_epi32(a, b), more = _mm256_packus_epi32(c, d);
    put_all<kStream>(in_order(_mm256_packus_epi16(words, more)), to);
  }
  static void put_bytes(I v, u8* to) {
    const __m128i low = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    put(to, _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_castsi256_si128(v), low)));
    put(to + 4, _mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_extracti128_si256(v, 1), low)));
  }
  template <bool kStream>
  static void put_words(I a, I b, u8* to) {
    put_all<kStream>(_mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xD8), to);
  }
  static void put_words(I v, u8* to) {
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
  }
  static __m128i halves(F v) {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  template <bool kStream>
  static void put_halves(F a, F b, u8* to) {
    put_all<kStream>(_mm256_set_m128i(halves(b), halves(a)), to);
  }
  static void put_halves(F v, u8* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves(v));
  }
};

}  // namespace
}  // namespace asys::simd
