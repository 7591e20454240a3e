#include "kernels.hpp"

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace asys::simd {

u64 levels(Level (&found)[kMostLevels]) {
  u64 count = 0;
  found[count++] = {"scalar", &kScalar};
#ifdef __x86_64__
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  if (__builtin_cpu_supports("avx2") && f16c) {
    found[count++] = {"avx2", &kAvx2};
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found[count++] = {"avx512", &kAvx512};
  }
#endif
  return count;
}

}  // namespace asys::simd
