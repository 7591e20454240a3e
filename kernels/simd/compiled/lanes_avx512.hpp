// Sixteen elements at a time: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "elements.hpp"

namespace asys::simd {
namespace {

struct Lanes {
  using F = __m512;
  using I = __m512i;
  static constexpr u64 kCount = 16;
  static constexpr u64 kProjectRows = 4, kProjectLanes = 4;

  static __m256i load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const Bf16* p) {
    return floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(p)), 16));
  }
  static F load(const Half* p) { return _mm512_cvtph_ps(load_words(p)); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F spread(float v) { return _mm512_set1_ps(v); }
  static I spread(u32 v) { return _mm512_set1_epi32(static_cast<i32>(v)); }
  static I bits(F v) { return _mm512_castps_si512(v); }
  static F floats(I v) { return _mm512_castsi512_ps(v); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static I nearest(F v) { return _mm512_cvtps_epi32(v); }
  static I magnitude(I v) { return _mm512_and_si512(v, spread(kMagnitude)); }
  static I max(I a, I b) { return _mm512_max_epi32(a, b); }
  static I min(I a, I b) { return _mm512_min_epi32(a, b); }
  static I plus(I a, I b) { return _mm512_add_epi32(a, b); }
  static I minus(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I both(I a, I b) { return _mm512_and_si512(a, b); }
  static I either(I a, I b) { return _mm512_or_si512(a, b); }
  template <int kBits>
  static I right(I v) {
    return _mm512_srli_epi32(v, kBits);
  }
  static I if_less(I a, I b, I yes, I no) {
    return _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(a, b), no, yes);
  }
  static u32 greater(I a, I b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static u32 largest(I v) { return static_cast<u32>(_mm512_reduce_max_epi32(v)); }
  static float total(F v) {
    float lanes[kCount], sum = 0;
    store(lanes, v);
    for (const float lane : lanes) sum += lane;
    return sum;
  }
  static void prefetch(const u8* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

  // Streaming stores need whole lines, and a fence before anybody else may see them.
  static constexpr bool kStreams = true;
  static void fence() { _mm_sfence(); }
  template <bool kStream = false>
  static void put_all(I v, u8* to) {
    if (kStream) _mm512_stream_si512(reinterpret_cast<I*>(to), v);
    else _mm512_storeu_si512(to, v);
  }
  // Packing works within 128-bit quarters; this brings the dwords a0 b0 c0 d0 a1 ... in order.
  static I in_order(I v) {
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
  }
  template <bool kStream>
  static void put_signed_bytes(I a, I b, I c, I d, u8* to) {
    const I words = _mm512_packs_epi32(a, b), more = _mm512_packs_epi32(c, d);
    put_all<kStream>(in_order(_mm512_packs_epi16(words, more)), to);
  }
  template <bool kStream>
  static void put_unsigned_bytes(I a, I b, I c, I d, u8* to) {
    const I words = _mm512_packus_epi32(a, b), more = _mm512_packus_epi32(c, d);
    put_all<kStream>(in_order(_mm512_packus_epi16(words, more)), to);
  }
  static void put_bytes(I v, u8* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(v));
  }
  template <bool kStream>
  static void put_words(I a, I b, u8* to) {
    const I order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    put_all<kStream>(_mm512_permutexvar_epi64(order, _mm512_packus_epi32(a, b)), to);
  }
  static void put_words(I v, u8* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
  }
  static __m256i halves(F v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  template <bool kStream>
  static void put_halves(F a, F b, u8* to) {
    const I first = _mm512_castsi256_si512(halves(a));
    put_all<kStream>(_mm512_inserti64x4(first, halves(b), 1), to);
  }
  static void put_halves(F v, u8* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves(v));
  }
};

}  // namespace
}  // namespace asys::simd
