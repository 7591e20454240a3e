// Where frames go (arena.hpp) and which stores copy them (stores.hpp), against simulated readers and costs.
#include <cstdio>
#include <deque>
#include <utility>

#include "arena.hpp"
#include "stores.hpp"

using namespace spmc;

namespace {

constexpr u64 kMiB = 1 << 20;
unsigned wrong = 0;

void check(bool good, const char* what) {
  if (good) return;
  ++wrong;
  std::printf("  WRONG: %s\n", what);
}

// The producer's side of an arena: live frames in order, and readers that finish the oldest ones.
struct Shard {
  Arena arena;
  std::deque<std::pair<u64, u64>> live;  // start, end
  u64 finished = 0;                      // by readers, not yet known here
  u64 highest = 0;                       // end of the highest frame since it was last set to 0
  bool overlap = false;

  Shard(u64 bytes, u64 window) : arena(bytes, window) {}

  void reclaim() {
    arena.reclaimed();
    for (; finished != 0; --finished) live.pop_front();
    if (live.empty()) arena.clear();
    else arena.free_to(live.front().first);
  }
  bool push(u64 payload, bool hot) {
    const u64 need = frame_bytes(payload);
    if (hot && arena.wants_reclaim(need)) reclaim();
    std::optional<u64> start = arena.allocate(need, hot);
    if (!start) reclaim(), start = arena.allocate(need, hot);
    if (!start) return false;
    for (const auto& [from, to] : live) overlap = overlap || (*start < to && from < *start + need);
    live.push_back({*start, *start + need});
    if (*start + need > highest) highest = *start + need;
    return true;
  }
  u64 unread() const { return live.size() - finished; }
};

// Readers that are `behind` packets behind: the frames stay in the window, also after a lag.
void readers_that_keep_up(u64 payload, u64 behind) {
  Shard shard(64 * kMiB, 4 * kMiB);
  const auto run = [&](u64 packets, u64 most) {
    for (u64 i = 0; i < packets; ++i) {
      check(shard.push(payload, true), "there is room");
      while (shard.unread() > most) ++shard.finished;
    }
  };
  const u64 lap = 64 * kMiB / payload;
  run(lap, behind);
  check(shard.highest <= 4 * kMiB, "readers that keep up: only the window is touched");
  run(lap / 2, lap);  // they stand still
  check(shard.highest > 4 * kMiB, "readers that lag: more than the window is used");
  run(lap / 2, behind);
  shard.highest = 0;
  run(lap, behind);
  check(shard.highest <= 4 * kMiB, "after a lag: only the window is touched again");
}

void random_frames() {
  u32 state = 1;
  const auto draw = [&](u32 below) { return ((state = state * 1664525u + 1013904223u) >> 8) % below; };
  Shard shard(kMiB, 128 << 10);
  u64 refused = 0;
  for (unsigned i = 0; i < 200'000; ++i) {
    refused += !shard.push(draw(30'000), draw(2) != 0);
    if (draw(3) == 0)
      for (u32 n = draw(8); n > 0 && shard.unread() > 0; --n) ++shard.finished;
    u64 used = 0;
    for (const auto& [from, to] : shard.live) used += to - from;
    check(!shard.overlap && used <= shard.arena.used(), "no frame lies on a live one");
    if (wrong != 0) return;
  }
  check(refused > 0, "the arena was full at times");
}

// Costs in ticks a byte; what a packet of 1 MiB takes. Returns the share of cached packets.
struct Costs {
  double cached, streaming;
  bool near;
};
double run(StoreChoice& choice, Costs costs, u64 packets, double& ticks, u64 preempted = 0) {
  u64 cached = 0;
  for (u64 i = 0; i < packets; ++i) {
    if (choice.due()) choice.answer(costs.near);
    const bool now = choice.cached();
    double cost = (now ? costs.cached : costs.streaming) * kMiB;
    ticks += cost;
    if (preempted != 0 && i % preempted == 0) cost *= 100;
    choice.copied(now, kMiB, static_cast<u64>(cost));
    cached += now;
  }
  return static_cast<double>(cached) / static_cast<double>(packets);
}

void stores_follow_the_cost() {
  constexpr Costs near{0.08, 0.16, true}, far{1.6, 0.16, false}, mistaken{1.6, 0.16, true};
  StoreChoice choice(4 * kMiB);
  double ticks = 0;
  run(choice, near, 100, ticks);
  check(run(choice, near, 4000, ticks) > 0.9, "near: cached stores");
  check(run(choice, near, 4000, ticks, 50) > 0.8, "near: also where the process is preempted");
  ticks = 0;
  check(run(choice, far, 4000, ticks) < 0.02, "far: streaming stores");
  check(ticks < 1.1 * 4000 * kMiB * far.streaming, "far: the change and trials cost little");
  ticks = 0;
  run(choice, far, 20000, ticks);
  check(ticks < 1.001 * 20000 * kMiB * far.streaming, "far for long: nothing is tried");
  ticks = 0;
  run(choice, mistaken, 20000, ticks);
  check(ticks < 1.1 * 20000 * kMiB * far.streaming, "far but taken for near: trials cost little");
  run(choice, near, 300, ticks);
  check(run(choice, near, 4000, ticks) > 0.9, "near again: cached stores, within 300 MiB");
}

}  // namespace

int main() {
  for (const u64 payload : {4096ULL, 65536ULL, 1048576ULL}) {
    readers_that_keep_up(payload, 0);
    readers_that_keep_up(payload, 1);
    readers_that_keep_up(payload, 2);
  }
  random_frames();
  stores_follow_the_cost();
  std::printf("  %u wrong\n", wrong);
  return wrong == 0 ? 0 : 1;
}
