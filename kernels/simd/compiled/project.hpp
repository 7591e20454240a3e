// Rows times a matrix, with the order of every sum fixed (kernels/random_projection/kernel.py).
//
// Lanes run over columns, so each sum adds its products one by one in the order of the row, in any
// instruction set. Rows are taken in blocks that stay in the L2 cache beside one panel of 64 columns,
// so the tensor is read once and the matrix once per block.
#pragma once

#include "elements.hpp"
#include "scaled_rows.hpp"

namespace asys::simd {
namespace {

constexpr u64 kTile = Lanes::kProjectLanes * Lanes::kCount;  // columns summed in registers
static_assert(kPanel % kTile == 0, "a panel is a whole number of tiles");

// kRows rows times one tile of a panel.
template <u64 kRows>
inline void tile(const float* const* x, u64 width, const float* panel, float (*sums)[kTile]) {
  using F = Lanes::F;
  F sum[kRows][Lanes::kProjectLanes];
  for (auto& row : sum)
    for (F& lane : row) lane = Lanes::spread(0.0f);
  for (u64 j = 0; j < width; ++j) {
    F column[Lanes::kProjectLanes];
    for (u64 v = 0; v < Lanes::kProjectLanes; ++v)
      column[v] = Lanes::load(panel + j * kPanel + v * Lanes::kCount);
    for (u64 r = 0; r < kRows; ++r) {
      const F value = Lanes::spread(x[r][j]);
      for (u64 v = 0; v < Lanes::kProjectLanes; ++v)
        sum[r][v] = Lanes::add(sum[r][v], Lanes::mul(value, column[v]));
    }
  }
  const typename Lanes::I infinity = Lanes::spread(kInfinity), nan = Lanes::spread(kQuietNan);
  for (u64 r = 0; r < kRows; ++r)
    for (u64 v = 0; v < Lanes::kProjectLanes; ++v) {
      const typename Lanes::I bits = Lanes::bits(sum[r][v]);
      const typename Lanes::I clean = Lanes::if_less(infinity, Lanes::magnitude(bits), nan, bits);
      Lanes::store(sums[r] + v * Lanes::kCount, Lanes::floats(clean));
    }
}

template <u64 kRows>
inline void tiles(const float* const* x, u64 width, const float* panels, u64 d_out, u64 first,
                  u8* out) {
  float sums[kRows][kTile];
  const u64 within = first % kPanel;
  tile<kRows>(x, width, panels + (first / kPanel) * width * kPanel + within, sums);
  const u64 columns = d_out - first < kTile ? d_out - first : kTile;
  for (u64 r = 0; r < kRows; ++r)
    std::memcpy(out + (r * d_out + first) * sizeof(float), sums[r], columns * sizeof(float));
}

template <class T>
void project_rows(const Rows& rows, const float* panels, u64 d_out, u8* out, float* scratch) {
  const u64 width = rows.width;
  const u64 block = project_rows_at_once(width);
  const float* x[kPanel];
  for (u64 begin = 0; begin < rows.count; begin += block) {
    const u64 count = rows.count - begin < block ? rows.count - begin : block;
    for (u64 r = 0; r < count; ++r) {
      const auto* row = reinterpret_cast<const T*>(row_at(rows, begin + r));
      float* wide = scratch + r * width;
      for (u64 j = 0; j < width; ++j) wide[j] = widen(row[j]);
      x[r] = wide;
    }
    for (u64 first = 0; first < d_out; first += kTile) {
      u64 r = 0;
      u8* to = out + begin * d_out * sizeof(float);
      for (; r + Lanes::kProjectRows <= count; r += Lanes::kProjectRows)
        tiles<Lanes::kProjectRows>(x + r, width, panels, d_out, first, to + r * d_out * sizeof(float));
      for (; r < count; ++r)
        tiles<1>(x + r, width, panels, d_out, first, to + r * d_out * sizeof(float));
    }
  }
}

void project(const Rows& rows, Kind kind, const float* panels, u64 d_out, u8* out, float* scratch) {
  if (kind == Kind::f32) project_rows<float>(rows, panels, d_out, out, scratch);
  else if (kind == Kind::bf16) project_rows<Bf16>(rows, panels, d_out, out, scratch);
  else project_rows<Half>(rows, panels, d_out, out, scratch);
}

}  // namespace
}  // namespace asys::simd
