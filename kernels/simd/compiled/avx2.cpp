#include "lanes_avx2.hpp"

#include "table.hpp"

namespace asys::simd {
const Kernels kAvx2 = kTable;
}
