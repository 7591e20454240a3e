// From which payload size on do streaming stores win on this machine, right now?
#pragma once

#include "layout.hpp"

namespace spmc {

// Measures both kinds of stores with a second thread that reads what was written, because a copy on
// one core picks the wrong kind in most cases: what counts is what the reader's core then pays.
// `arena` is used as scratch space and must not be in use. Returns a threshold in bytes (the largest
// u64: never); takes about `budget_ns`.
u64 calibrate_streaming(u8* arena, u64 arena_bytes, u64 budget_ns);

}  // namespace spmc
