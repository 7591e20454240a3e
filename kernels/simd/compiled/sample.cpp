#include "kernels.hpp"

namespace asys::simd {
namespace {

// SplitMix64's hash of an index, its upper half (kernels/simd/splitmix.py).
u64 hash32(u64 key, u64 index) {
  u64 z = key + (index + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return (z ^ (z >> 31)) >> 32;
}

}  // namespace

void sample(u64 total, u64 count, u64 key, i64* positions) {
  const u64 rotation = hash32(key, 1) * total >> 32;
  const auto row = [&](u64 i) {
    const u64 start = i * total / count, size = (i + 1) * total / count - start;
    return start + (hash32(key, 2 + i) * size >> 32) + rotation;
  };
  // Rows ascend up to the end of the tensor and go on at its start: those come first.
  u64 wrapped = 0;
  while (wrapped < count && row(count - 1 - wrapped) >= total) ++wrapped;
  for (u64 i = 0; i < wrapped; ++i)
    positions[i] = static_cast<i64>(row(count - wrapped + i) - total);
  for (u64 i = wrapped; i < count; ++i) positions[i] = static_cast<i64>(row(i - wrapped));
}

}  // namespace asys::simd
