// The kernels of one instruction set, as a table of functions.
//
// Every table computes the same bytes. The sources of a table (avx512.cpp, avx2.cpp, scalar.cpp) are
// compiled with their own instruction-set flags, so whatever they include keeps its functions in an
// anonymous namespace and uses no function template of the standard library: a linker that merged an
// AVX-512 copy of an inline function into the common code would break older processors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace asys::simd {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

// What an element is. `other` can be copied but not computed with.
enum class Kind { f32, bf16, f16, other };

constexpr u64 kMaxLeading = 8;  // leading dimensions left after merging
constexpr u64 kPanel = 64;      // columns of the projection's matrix that lie together (random_projection/kernel.py)

// Where the rows of a tensor lie. Elements of a row are contiguous.
struct Rows {
  const u8* base;
  u64 count;               // rows to encode
  u64 width;               // elements per row
  u64 itemsize;            // bytes per element
  u64 leading;             // merged leading dimensions, innermost first
  u64 size[kMaxLeading];
  i64 stride[kMaxLeading];  // bytes
  const i64* positions;    // the rows to take, or nullptr for all; checked by the caller
};

struct TopK {
  u64 k;            // at most the width
  bool bfloat16;    // dtype of values, else float32
  bool wide_index;  // uint32, else uint16
  u8* values;
  u8* index;
  u32* scratch;     // topk_scratch(width, k) words
};
constexpr u64 kTopKPad = 64;
constexpr u64 topk_scratch(u64 width, u64 k) { return 2 * (width + kTopKPad) + 2 * k + kTopKPad; }

// Outputs may be unaligned.
struct Kernels {
  void (*int8)(const Rows&, Kind, u8* scales, u8* codes);
  void (*fp8)(const Rows&, Kind, u8* scales, u8* codes);
  void (*cast)(const Rows&, Kind, bool bfloat16, u8* out);
  void (*topk)(const Rows&, Kind, const TopK&);
  // panels: float[ceil(d_out / 64)][width][64]. scratch: project_rows_at_once(width) * width floats.
  void (*project)(const Rows&, Kind, const float* panels, u64 d_out, u8* out, float* scratch);
  float (*read_sum)(const float*, u64 count);
};
extern const Kernels kScalar;
#ifdef __x86_64__
extern const Kernels kAvx2, kAvx512;
#endif

// Rows that are projected together: about 256 KiB as float32.
constexpr u64 project_rows_at_once(u64 width) {
  const u64 rows = width == 0 ? kPanel : (1 << 16) / width;
  return rows < 4 ? 4 : rows > kPanel ? kPanel : rows;
}

// Stratified row sampling, see kernels/token_sample/kernel.py. (sample.cpp)
void sample(u64 total, u64 count, u64 key, i64* positions);

// What this processor can run, worst first. (levels.cpp)
struct Level {
  const char* name;
  const Kernels* kernels;
};
constexpr u64 kMostLevels = 3;
u64 levels(Level (&found)[kMostLevels]);

}  // namespace asys::simd
