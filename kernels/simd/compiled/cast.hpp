// float32, bfloat16 and float16 to bfloat16 or float16, rounded to nearest even.
#pragma once

#include "elements.hpp"
#include "scaled_rows.hpp"

namespace asys::simd {
namespace {

template <bool kBfloat16, bool kStream, class T>
void cast_rows(const Rows& rows, u8* out) {
  using F = Lanes::F;
  using I = Lanes::I;
  const I infinity = Lanes::spread(kInfinity);
  const auto if_nan = [&](I bits, u32 yes, I no) {
    return Lanes::if_less(infinity, Lanes::magnitude(bits), Lanes::spread(yes), no);
  };
  const auto bf16 = [&](F v) {
    const I bits = Lanes::bits(v);
    const I odd = Lanes::both(Lanes::right<16>(bits), Lanes::spread(1u));
    const I up = Lanes::right<16>(Lanes::plus(Lanes::plus(bits, Lanes::spread(0x7FFFu)), odd));
    return if_nan(bits, 0x7FC0, up);
  };
  const auto quiet = [&](F v) {
    const I bits = Lanes::bits(v);
    return Lanes::floats(if_nan(bits, kQuietNan, bits));
  };
  const auto one = [&](F v, u8* to) {
    if constexpr (kBfloat16) Lanes::put_words(bf16(v), to);
    else Lanes::put_halves(quiet(v), to);
  };
  const auto two = [&](F a, F b, u8* to) {
    if constexpr (kBfloat16) Lanes::template put_words<kStream>(bf16(a), bf16(b), to);
    else Lanes::template put_halves<kStream>(quiet(a), quiet(b), to);
  };
  constexpr u64 n = Lanes::kCount;
  const u64 width = rows.width;
  for (u64 r = 0; r < rows.count; ++r, out += width * 2) {
    const auto* x = reinterpret_cast<const T*>(row_at(rows, r));
    u64 i = 0;
    for (; i + 8 * n <= width; i += 8 * n)
      for (u64 at = i; at < i + 8 * n; at += 2 * n)
        two(Lanes::load(x + at), Lanes::load(x + at + n), out + at * 2);
    for (; i + 2 * n <= width; i += 2 * n)
      two(Lanes::load(x + i), Lanes::load(x + i + n), out + i * 2);
    for (; i + n <= width; i += n) one(Lanes::load(x + i), out + i * 2);
    if (i < width) {
      u8 part[n * 2];
      one(load_part(x + i, width - i), part);
      std::memcpy(out + i * 2, part, (width - i) * 2);
    }
  }
  if (kStream) Lanes::fence();
}

template <bool kBfloat16, class T>
void cast_rows_to(const Rows& rows, u8* out) {
  if (streams(out, rows.width * 2, rows.count * rows.width * 2)) {
    cast_rows<kBfloat16, Lanes::kStreams, T>(rows, out);
  } else {
    cast_rows<kBfloat16, false, T>(rows, out);
  }
}

template <bool kBfloat16>
void cast_rows_of(const Rows& rows, Kind kind, u8* out) {
  if (kind == Kind::f32) cast_rows_to<kBfloat16, float>(rows, out);
  else if (kind == Kind::bf16) cast_rows_to<kBfloat16, Bf16>(rows, out);
  else cast_rows_to<kBfloat16, Half>(rows, out);
}

void cast(const Rows& rows, Kind kind, bool bfloat16, u8* out) {
  if (bfloat16) cast_rows_of<true>(rows, kind, out);
  else cast_rows_of<false>(rows, kind, out);
}

}  // namespace
}  // namespace asys::simd
