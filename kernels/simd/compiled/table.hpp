// Collects the kernels of one instruction set; included once by each of scalar, avx2 and avx512.cpp.
#pragma once

#include "cast.hpp"
#include "project.hpp"
#include "scaled_rows.hpp"
#include "topk.hpp"

namespace asys::simd {
namespace {

float read_sum(const float* x, u64 count) {
  constexpr u64 n = Lanes::kCount;
  Lanes::F sums[8];
  for (Lanes::F& sum : sums) sum = Lanes::spread(0.0f);
  u64 i = 0;
  for (; i + 8 * n <= count; i += 8 * n)
    for (u64 v = 0; v < 8; ++v) sums[v] = Lanes::add(sums[v], Lanes::load(x + i + v * n));
  for (u64 v = 1; v < 8; ++v) sums[0] = Lanes::add(sums[0], sums[v]);
  float sum = Lanes::total(sums[0]);
  for (; i < count; ++i) sum += x[i];
  return sum;
}

constexpr Kernels kTable = {scaled_rows_of<Int8Code>, scaled_rows_of<Fp8Code>, cast, topk, project,
                            read_sum};

}  // namespace
}  // namespace asys::simd
