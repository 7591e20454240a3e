#include "lanes_avx512.hpp"

#include "table.hpp"

namespace asys::simd {
const Kernels kAvx512 = kTable;
}
