// Getting payload bytes into the arena, and their checksum. Both choose their instructions at run
// time; the build stays portable x86-64 (and falls back to memcpy and a table elsewhere).
#pragma once

#include "layout.hpp"

namespace spmc {

// Ordinary stores: the bytes pass through the writer's cache, where a reader nearby finds them.
void copy_cached(u8* to, const u8* from, u64 bytes);

// Streaming stores: the bytes bypass the cache, so the writer does not first fetch lines that the
// reader's core holds. `to` must be 64-byte aligned. Ends with the store fence that makes the bytes
// visible before any later store: streaming stores are not ordered by a release store.
void copy_streaming(u8* to, const u8* from, u64 bytes);

// One turn of a loop that waits for another core.
void relax();

// A clock that costs some ten nanoseconds, in units of its own.
u64 ticks();
u64 ticks_in(u64 ns);
// What a load of this word takes beyond one from the nearest cache.
u64 ticks_to_load(u64& word);

// CRC-32C (Castagnoli), as the PyPI package crc32c computes it.
u32 crc32c(const u8* data, u64 bytes);

}  // namespace spmc
