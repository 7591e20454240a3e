// int8 and fp8: one scale per row, one byte per element (kernels/simd/scaled_rows.py has the formula).
//
// A row is read twice, for its peak and for its codes; the second time it comes from the L1 cache, so
// memory is read once. While the codes are computed the next row is prefetched: otherwise memory would
// idle during that half of the work. `Lanes` is the instruction set's.
//
// What was tried on 256 rows of 1024 floats that were not in cache (Xeon, AVX-512), in units of reading
// them once: 1.35 with four vectors a turn; 1.2 to 1.3 with sixteen; 1.4 where the compiler had moved
// the prefetches of sixteen together. Prefetching into L2 or two rows ahead, or finding the next row's
// peak in the loop that writes this row's codes: no better. A quarter of the bytes read is written as
// well, so where memory's bandwidth is the limit 1.25 is the floor. Streaming stores cost nothing when
// the output lies in 4 MiB that are used again and save 0.1 when it does not. With all of it in cache
// the loop is bound by its instructions: 2.5 to 2.8.
#pragma once

#include "elements.hpp"

namespace asys::simd {
namespace {

constexpr float kSmallestPeak = 0x1p-117f;
constexpr u64 kPrefetchBytes = 16 << 10;  // wider rows would push each other out of the L1 cache
constexpr u64 kStreamBytes = 128 << 10;   // shorter payloads stay in the cache for who reads them

// Whether rows of `row_bytes` are written past the cache: all stores are whole, aligned lines then.
inline bool streams(const u8* out, u64 row_bytes, u64 total_bytes) {
  return total_bytes >= kStreamBytes && row_bytes % 64 == 0 &&
         reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
}

template <class T>
inline Lanes::F load_part(const T* x, u64 count) {
  T part[Lanes::kCount] = {};
  std::memcpy(part, x, count * sizeof(T));
  return Lanes::load(part);
}

// Bits of the largest magnitude. With kFiniteOnly elements that are not finite count as zero.
template <bool kFiniteOnly, class T>
inline u32 peak_bits(const T* x, u64 width) {
  using I = Lanes::I;
  const I zero = Lanes::spread(0u), infinity = Lanes::spread(kInfinity);
  const auto size = [&](Lanes::F v) {
    const I bits = Lanes::magnitude(Lanes::bits(v));
    return kFiniteOnly ? Lanes::if_less(bits, infinity, bits, zero) : bits;
  };
  constexpr u64 n = Lanes::kCount;
  I a = zero, b = zero, c = zero, d = zero;
  const auto four = [&](u64 at) {
    a = Lanes::max(a, size(Lanes::load(x + at)));
    b = Lanes::max(b, size(Lanes::load(x + at + n)));
    c = Lanes::max(c, size(Lanes::load(x + at + 2 * n)));
    d = Lanes::max(d, size(Lanes::load(x + at + 3 * n)));
  };
  u64 i = 0;
  for (; i + 16 * n <= width; i += 16 * n) {
    four(i);
    four(i + 4 * n);
    four(i + 8 * n);
    four(i + 12 * n);
  }
  for (; i + 4 * n <= width; i += 4 * n) four(i);
  for (; i + n <= width; i += n) a = Lanes::max(a, size(Lanes::load(x + i)));
  if (i < width) b = Lanes::max(b, size(load_part(x + i, width - i)));
  return Lanes::largest(Lanes::max(Lanes::max(a, b), Lanes::max(c, d)));
}

struct Int8Code {
  static constexpr float kMost = 127.0f;
  static constexpr float kLargestScale = 0x1.020406p+121f;  // scaled_rows.largest_scale(127)
  static constexpr u32 kNonFinite = static_cast<u32>(-128);
  static Lanes::I of(Lanes::F scaled) { return Lanes::nearest(scaled); }
  template <bool kStream>
  static void put(Lanes::I a, Lanes::I b, Lanes::I c, Lanes::I d, u8* to) {
    Lanes::put_signed_bytes<kStream>(a, b, c, d, to);
  }
};

struct Fp8Code {
  static constexpr float kMost = 448.0f;
  static constexpr float kLargestScale = 0x1.249248p+119f;  // scaled_rows.largest_scale(448)
  static constexpr u32 kNonFinite = 0x7F;
  static Lanes::I of(Lanes::F scaled) {
    using I = Lanes::I;
    const I bits = Lanes::bits(scaled);
    const I size = Lanes::min(Lanes::magnitude(bits), Lanes::spread(0x43E00000u));  // 448
    const I sign = Lanes::both(Lanes::right<24>(bits), Lanes::spread(0x80u));
    const I odd = Lanes::both(Lanes::right<20>(size), Lanes::spread(1u));
    // The exponent's bias changes from 127 to 7, and 20 of 23 mantissa bits are rounded away.
    const I normal = Lanes::right<20>(
        Lanes::plus(Lanes::plus(size, Lanes::spread(0xC407FFFFu)), odd));
    // Below 2^-6: adding 2^14 leaves the value in units of 2^-9 in the low bits.
    const I magic = Lanes::spread(0x46800000u);
    const I subnormal = Lanes::minus(
        Lanes::bits(Lanes::add(Lanes::floats(size), Lanes::floats(magic))), magic);
    return Lanes::either(Lanes::if_less(size, Lanes::spread(0x3C800000u), subnormal, normal), sign);
  }
  template <bool kStream>
  static void put(Lanes::I a, Lanes::I b, Lanes::I c, Lanes::I d, u8* to) {
    Lanes::put_unsigned_bytes<kStream>(a, b, c, d, to);
  }
};

template <class Code, bool kAllFinite, bool kStream, class T>
inline void put_codes(const T* x, u64 width, float inverse, const u8* next, u8* out) {
  using I = Lanes::I;
  const Lanes::F factor = Lanes::spread(inverse);
  const I infinity = Lanes::spread(kInfinity), marked = Lanes::spread(Code::kNonFinite);
  const auto code = [&](Lanes::F v) {
    if (kAllFinite) return Code::of(Lanes::mul(v, factor));
    const I size = Lanes::magnitude(Lanes::bits(v));
    // Zero instead of NaN: what a conversion makes of NaN is replaced anyway, but it would be slow.
    const Lanes::F clean = Lanes::floats(
        Lanes::if_less(size, infinity, Lanes::bits(v), Lanes::spread(0u)));
    return Lanes::if_less(size, infinity, Code::of(Lanes::mul(clean, factor)), marked);
  };
  constexpr u64 n = Lanes::kCount;
  const auto four = [&](u64 at) {
    // Keeps the compiler from issuing the prefetches of several calls at once: they and the streaming
    // stores would queue for the same line fill buffers.
    __asm__ __volatile__("" ::: "memory");
    for (u64 line = 0; line < 4 * n * sizeof(T); line += 64)
      Lanes::prefetch(next + at * sizeof(T) + line);
    Code::template put<kStream>(code(Lanes::load(x + at)), code(Lanes::load(x + at + n)),
                                code(Lanes::load(x + at + 2 * n)),
                                code(Lanes::load(x + at + 3 * n)), out + at);
  };
  u64 i = 0;
  for (; i + 16 * n <= width; i += 16 * n) {
    four(i);
    four(i + 4 * n);
    four(i + 8 * n);
    four(i + 12 * n);
  }
  for (; i + 4 * n <= width; i += 4 * n) four(i);
  for (; i + n <= width; i += n) Lanes::put_bytes(code(Lanes::load(x + i)), out + i);
  if (i < width) {
    u8 part[n];
    Lanes::put_bytes(code(load_part(x + i, width - i)), part);
    std::memcpy(out + i, part, width - i);
  }
}

template <class Code, bool kStream, class T>
void scaled_rows(const Rows& rows, u8* scales, u8* codes) {
  const u64 width = rows.width;
  const bool ahead = width * sizeof(T) <= kPrefetchBytes;
  for (u64 r = 0; r < rows.count; ++r, codes += width) {
    const u8* at = row_at(rows, r);
    const auto* x = reinterpret_cast<const T*>(at);
    u32 bits = peak_bits<false>(x, width);
    const bool finite = bits < kInfinity;
    if (!finite) bits = peak_bits<true>(x, width);
    float peak = float_of(bits);
    if (peak < kSmallestPeak) peak = kSmallestPeak;
    float scale = peak / Code::kMost;
    if (scale > Code::kLargestScale) scale = Code::kLargestScale;
    put(scales + r * sizeof(float), scale);
    const float inverse = Code::kMost / peak;
    const u8* next = ahead && r + 1 < rows.count ? row_at(rows, r + 1) : at;
    if (finite) put_codes<Code, true, kStream>(x, width, inverse, next, codes);
    else put_codes<Code, false, kStream>(x, width, inverse, next, codes);
  }
  if (kStream) Lanes::fence();
}

template <class Code, class T>
void scaled_rows_to(const Rows& rows, u8* scales, u8* codes) {
  if (streams(codes, rows.width, rows.count * rows.width)) {
    scaled_rows<Code, Lanes::kStreams, T>(rows, scales, codes);
  } else {
    scaled_rows<Code, false, T>(rows, scales, codes);
  }
}

template <class Code>
void scaled_rows_of(const Rows& rows, Kind kind, u8* scales, u8* codes) {
  if (kind == Kind::f32) scaled_rows_to<Code, float>(rows, scales, codes);
  else if (kind == Kind::bf16) scaled_rows_to<Code, Bf16>(rows, scales, codes);
  else scaled_rows_to<Code, Half>(rows, scales, codes);
}

}  // namespace
}  // namespace asys::simd
