#include "lanes_scalar.hpp"

#include "table.hpp"

namespace asys::simd {
const Kernels kScalar = kTable;
}
