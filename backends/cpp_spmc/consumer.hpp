// One member of one group: claiming over all shards, waiting, and noticing the dead.
#pragma once

#include <vector>

#include "tables.hpp"

namespace spmc {

struct Claim {
  u64 seq;
  u64 word;         // the claimed group word: what a release must find
  const u8* frame;  // packet header; the payload follows it
  u64 nbytes;
  u32 shard;
};

class Consumer {
 public:
  // poll_ns: 0 sleeps until a producer rings; otherwise look every poll_ns, less often while idle.
  Consumer(std::shared_ptr<Segment> segment, const GroupInfo& group, u64 spin_ns, u64 poll_ns);
  ~Consumer() { close(); }
  Consumer(const Consumer&) = delete;
  Consumer& operator=(const Consumer&) = delete;

  // Claim up to `most` more packets, all shards in turn. Never waits.
  unsigned claim(std::vector<Claim>& claims, unsigned most);
  // Wait for something to claim, at most until `deadline_ns` (CLOCK_MONOTONIC) and never longer than
  // about 50 ms, so that the caller can look at signals. False: there will be nothing any more.
  bool wait(u64 deadline_ns);
  // The same for who waits for `least` packets, several of them, for `timeout_ns` in all: is woken by none, so
  // that neither it nor a producer pays for each. It looks again after 1 ms, and seldom while few come.
  bool doze(u64 deadline_ns, u64 timeout_ns, u64 least);
  // There were as many as were wanted: look sooner the next time.
  void filled();
  unsigned release(const std::vector<Claim>& claims);
  unsigned give_back(const std::vector<Claim>& claims);
  // Producers finished or died, and nothing is or may become claimable. Own claims do not count.
  bool ended();
  void close();
  bool closed() const { return owner_ == 0; }
  const std::shared_ptr<Segment>& segment() const { return segment_; }

 private:
  bool news();
  bool goes_on();
  void look_after_the_dead();

  std::shared_ptr<Segment> segment_;
  Tables tables_;
  unsigned group_;
  bool at_least_once_;
  u64 spin_ns_, poll_ns_;
  u64 nap_ns_;
  u64 doze_ns_;
  u64 patience_ns_ = 0;  // what the next wait spins for beyond spin_ns_
  u64 owner_;
  std::vector<ShardMemory> shards_;
  u64 turn_ = 0;
  u64 next_look_ = 0;
};

u64 monotonic_ns();

}  // namespace spmc
