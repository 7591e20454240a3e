#include "calibrate.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "consumer.hpp"
#include "copy.hpp"

namespace spmc {
namespace {

constexpr u64 kSizes[] = {4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20};
constexpr u64 kWindow = 8 << 20;

// Bytes per nanosecond through a little ring in `arena`, written by this thread, read by another.
double pipeline(u8* arena, u64 window, const u8* source, u64 size, bool streaming, u64 budget_ns) {
  const u64 slots = std::max<u64>(window / size, 1);
  alignas(128) std::atomic<u64> written{0};
  alignas(128) std::atomic<u64> read{0};
  std::atomic<bool> stop{false};
  std::atomic<u64> sum{0};
  std::thread reader([&] {
    for (u64 next = 0; !stop.load(std::memory_order_relaxed);) {
      if (written.load(std::memory_order_acquire) == next) continue;
      sum.fetch_add(sum_u64(arena + next % slots * size, size), std::memory_order_relaxed);
      read.store(++next, std::memory_order_release);
    }
  });
  const u64 start = monotonic_ns();
  u64 now = start;
  for (u64 next = 0; now - start < budget_ns; now = monotonic_ns()) {
    if (next - read.load(std::memory_order_acquire) == slots) continue;
    if (streaming) copy_streaming(arena + next % slots * size, source, size);
    else copy_cached(arena + next % slots * size, source, size);
    written.store(++next, std::memory_order_release);
  }
  const u64 done = read.load(std::memory_order_acquire);
  stop = true;
  reader.join();
  return static_cast<double>(done * size) / static_cast<double>(now - start);
}

}  // namespace

u64 calibrate_streaming(u8* arena, u64 arena_bytes, u64 budget_ns) {
  const u64 window = std::min(arena_bytes, kWindow);
  const std::vector<u8> source(kSizes[std::size(kSizes) - 1], 1);
  const u64 each = budget_ns / (2 * std::size(kSizes));
  u64 threshold = ~0ULL;
  for (std::size_t i = std::size(kSizes); i-- > 0;) {  // from the largest down, while it wins
    if (kSizes[i] > window) continue;
    const double cached = pipeline(arena, window, source.data(), kSizes[i], false, each);
    const double streaming = pipeline(arena, window, source.data(), kSizes[i], true, each);
    if (streaming < cached) break;
    threshold = kSizes[i];
  }
  return threshold;
}

}  // namespace spmc
