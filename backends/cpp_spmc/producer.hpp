// The writer of one shard: slots, arena, copy and the producer's own counters.
#pragma once

#include <vector>

#include "arena.hpp"
#include "copy.hpp"
#include "stores.hpp"
#include "tables.hpp"

namespace spmc {

enum class Refusal : unsigned { full = 0, timeout = 1, too_large = 2, closed = 3, none = 4 };

struct CopyPolicy {
  u64 streaming_threshold = 16384;  // bytes; smaller payloads always have cached stores
  u64 window = 4 << 20;             // bytes; see Arena
};

class Producer {
  static constexpr unsigned kSizeClasses = 5;  // by powers of four from 16 KiB

 public:
  // `source`: the rank in its packets; the segment's own where there is none.
  Producer(std::shared_ptr<Segment> segment, u64 shard, const CopyPolicy& policy,
           std::optional<u64> source = std::nullopt);

  // Room for one payload: its 64-byte-aligned address, or nullptr with `refusal` set (not counted).
  // The packet header goes to the kPacketHeaderBytes before it.
  u8* reserve(u64 nbytes, Refusal& refusal);
  // Forget the last reserve.
  void abort();
  // The reserved payload is complete: queue it. `nbytes` may be smaller than was reserved.
  void queue(u64 nbytes, u64 hook_id);
  // Publish everything queued with one store.
  void commit();

  void count_refusal(Refusal refusal) { bump(kShDropped + static_cast<u64>(refusal) * 8); }
  u64 next_seq() const { return next_; }
  u64 shard() const { return shard_; }
  bool checksum() const { return segment_->checksum(); }
  u64 source() const { return source_; }
  // Harvest what the readers finished; then 0 (empty) .. 1 (slots or arena used up).
  double fill_ratio();
  // Into what `reserve` gave, at most what was asked for.
  void copy(u8* to, const u8* from, u64 bytes);
  const std::shared_ptr<Segment>& segment() const { return segment_; }

 private:
  void reclaim(bool full = false);
  std::optional<u64> allocate(u64 nbytes, u64 need);
  std::optional<u64> wait_for_window(u64 nbytes, u64 need);
  StoreChoice& choice(u64 nbytes);
  bool wants_cached(StoreChoice& stores);
  bool readers_are_near();
  bool was_read(u64 seq);
  void pass_over_who_stands_still(u64 now);
  void refresh_groups(u64 mask);
  u32 wanted(u64 hook_id);
  void bump(u64 offset) { store(m_.at(offset), load(m_.at(offset)) + 1); }

  std::shared_ptr<Segment> segment_;
  Tables tables_;
  ShardMemory m_;
  u64 shard_;
  u64 source_;
  CopyPolicy policy_;
  Arena arena_;
  u8* base_;
  u64 slots_;
  u64 next_, committed_, tail_;  // tail_ <= committed_ <= next_, modulo 2^64
  std::vector<u64> starts_;      // frame offset per slot
  u64 reserved_ = 0;
  bool cached_ = false;  // the stores that the reserved frame wants
  std::array<StoreChoice, kSizeClasses> choices_;
  u64 bytes_ = 0;
  u64 mask_ = 0;
  u64 missed_[kGroups] = {};
  unsigned missed_dirty_ = 0;  // published records that still hold old `missed` numbers
  unsigned published_ = 0;     // record that the next commit writes
  bool filtering_ = false;     // some group does not get every packet
  std::vector<GroupInfo> filters_;
  Tally harvest_;
  u64 next_death_check_ = 0;
  u64 full_at_ = ~0ULL, full_since_ = 0;  // the oldest slot while the ring is full, and when it was first seen
};

}  // namespace spmc
