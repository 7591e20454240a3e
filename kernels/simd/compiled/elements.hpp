// Single elements: unaligned access, the 16-bit floats and e4m3 as integers, rows by number.
#pragma once

#include <cstring>

#include "kernels.hpp"

namespace asys::simd {
namespace {

constexpr u32 kInfinity = 0x7F800000, kMagnitude = 0x7FFFFFFF, kQuietNan = 0x7FC00000;

struct Bf16 {
  u16 bits;
};
struct Half {
  u16 bits;
};

template <class T>
inline void put(u8* to, T value) {
  std::memcpy(to, &value, sizeof value);
}
inline u32 bits_of(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(u32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline float widen(Bf16 value) { return float_of(static_cast<u32>(value.bits) << 16); }
inline float widen(Half value) {
  const u32 sign = static_cast<u32>(value.bits & 0x8000) << 16;
  const u32 exponent = (value.bits >> 10) & 31, mantissa = value.bits & 0x3FF;
  if (exponent == 31) return float_of(sign | kInfinity | (mantissa << 13));
  if (exponent != 0) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24f));  // exact
}

// Rounding to nearest even relies on the default floating-point mode (module.cpp sets it).
inline u16 to_bf16(u32 bits) {
  if ((bits & kMagnitude) > kInfinity) return 0x7FC0;
  return static_cast<u16>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
inline u16 to_half(u32 bits) {
  const u32 sign = (bits >> 16) & 0x8000, size = bits & kMagnitude;
  if (size > kInfinity) return 0x7E00;
  if (size >= 0x477FF000) return static_cast<u16>(sign | 0x7C00);  // 65520 and more
  if (size >= 0x38800000)  // 2^-14, the smallest normal half
    return static_cast<u16>(sign | ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13));
  // Adding 1/2 leaves |x| in units of 2^-24, the half's subnormal step, in the low bits.
  return static_cast<u16>(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)));
}

// Row i of those to encode.
inline const u8* row_at(const Rows& rows, u64 i) {
  u64 row = rows.positions == nullptr ? i : static_cast<u64>(rows.positions[i]);
  const u8* at = rows.base;
  for (u64 d = 0; d < rows.leading; ++d) {
    const u64 next = d + 1 < rows.leading ? row / rows.size[d] : 0;
    at += static_cast<i64>(row - next * rows.size[d]) * rows.stride[d];
    row = next;
  }
  return at;
}

}  // namespace
}  // namespace asys::simd
