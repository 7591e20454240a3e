// One element at a time, in plain C++: the fallback for every other processor.
#pragma once

#include "elements.hpp"

namespace asys::simd {
namespace {

struct Lanes {
  using F = float;
  using I = i32;
  static constexpr u64 kCount = 1;
  static constexpr u64 kProjectRows = 1, kProjectLanes = 64;

  static F load(const float* p) {
    F value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  static F load(const Bf16* p) { return widen(*p); }
  static F load(const Half* p) { return widen(*p); }
  static void store(float* p, F v) { *p = v; }
  static F spread(float v) { return v; }
  static I spread(u32 v) { return static_cast<I>(v); }
  static I bits(F v) { return static_cast<I>(bits_of(v)); }
  static F floats(I v) { return float_of(static_cast<u32>(v)); }
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  // |v| < 2^22: the sum's unit is 1, so adding rounds to nearest even.
  static I nearest(F v) { return bits(v + 12582912.0f) - bits(12582912.0f); }
  static I magnitude(I v) { return v & static_cast<I>(kMagnitude); }
  static I max(I a, I b) { return a > b ? a : b; }
  static I min(I a, I b) { return a < b ? a : b; }
  static I plus(I a, I b) { return static_cast<I>(static_cast<u32>(a) + static_cast<u32>(b)); }
  static I minus(I a, I b) { return static_cast<I>(static_cast<u32>(a) - static_cast<u32>(b)); }
  static I both(I a, I b) { return a & b; }
  static I either(I a, I b) { return a | b; }
  template <int kBits>
  static I right(I v) {
    return static_cast<I>(static_cast<u32>(v) >> kBits);
  }
  static I if_less(I a, I b, I yes, I no) { return a < b ? yes : no; }
  static u32 greater(I a, I b) { return a > b ? 1 : 0; }
  static u32 largest(I v) { return static_cast<u32>(v); }
  static float total(F v) { return v; }
  static void prefetch(const u8*) {}

  static constexpr bool kStreams = false;
  static void fence() {}
  static void put_bytes(I v, u8* to) { *to = static_cast<u8>(v); }
  template <bool kStream>
  static void put_signed_bytes(I a, I b, I c, I d, u8* to) {
    put_unsigned_bytes<kStream>(a, b, c, d, to);
  }
  template <bool kStream>
  static void put_unsigned_bytes(I a, I b, I c, I d, u8* to) {
    put_bytes(a, to);
    put_bytes(b, to + 1);
    put_bytes(c, to + 2);
    put_bytes(d, to + 3);
  }
  static void put_words(I v, u8* to) { put(to, static_cast<u16>(v)); }
  template <bool kStream>
  static void put_words(I a, I b, u8* to) {
    put_words(a, to);
    put_words(b, to + 2);
  }
  static void put_halves(F v, u8* to) { put(to, to_half(bits_of(v))); }
  template <bool kStream>
  static void put_halves(F a, F b, u8* to) {
    put_halves(a, to);
    put_halves(b, to + 2);
  }
};

}  // namespace
}  // namespace asys::simd
