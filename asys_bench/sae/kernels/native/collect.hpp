// Indices of the entries of a row that reach a limit, ascending.
#pragma once

#include "kernels.hpp"

namespace sae {

// index[0..n) = every i with row[i] >= limit; returns n. `index` needs room for `size` + 16.
using CollectFrom = i64 (*)(const float* row, float limit, i64 size, i32* index);
// The same with row[i] > limit[i].
using CollectAbove = i64 (*)(const float* row, const float* limit, i64 size, i32* index);

// The fastest ones that this machine has.
extern const CollectFrom collect_from;
extern const CollectAbove collect_above;

}  // namespace sae
