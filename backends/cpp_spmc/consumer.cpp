#include "consumer.hpp"

#include <algorithm>
#include <utility>

#include "copy.hpp"

namespace spmc {
namespace {

constexpr u64 kLookNs = 50'000'000;
constexpr u64 kFirstDozeNs = 1'000'000;
constexpr u64 kDozes = 8;   // looks in the time that a pull waits for `kMany` packets or more
constexpr u64 kMany = 32;   // fewer are large ones, and a ring is soon full of them
constexpr u64 kLongestNap = 8;  // times poll_ns, after a while without a packet
constexpr u64 kBytesPerNs = 8;
constexpr u64 kMostPatienceNs = 200'000;

}  // namespace

u64 monotonic_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<u64>(time.tv_sec) * 1'000'000'000ULL + static_cast<u64>(time.tv_nsec);
}

Consumer::Consumer(std::shared_ptr<Segment> segment, const GroupInfo& group, u64 spin_ns,
                   u64 poll_ns)
    : segment_(std::move(segment)),
      tables_(*segment_),
      group_(group.index),
      at_least_once_(group.at_least_once),
      spin_ns_(spin_ns),
      poll_ns_(poll_ns),
      nap_ns_(poll_ns),
      doze_ns_(kFirstDozeNs),
      owner_(tables_.register_owner(group.index)) {
  for (u64 i = 0; i < segment_->geometry().shards; ++i) shards_.push_back(segment_->shard(i));
  tables_.reap_dead();
}

unsigned Consumer::claim(std::vector<Claim>& claims, unsigned most) {
  const u64 arena_bytes = segment_->geometry().arena_bytes;
  unsigned taken = 0;
  for (u64 i = 0; i < shards_.size() && taken < most; ++i) {
    const u64 shard = turn_;
    if (++turn_ == shards_.size()) turn_ = 0;
    ShardMemory& m = shards_[shard];
    const u8* arena = segment_->arena(shard);
    const unsigned before = taken;
    taken += ShardRing::claim(m, group_, owner_, most - taken, [&](u64 seq, u64 word) {
      const u64 descriptor = load(m.descriptor(seq));
      const u64 offset = (descriptor >> 32) * 64;
      u64 nbytes = descriptor & 0xFFFFFFFF;
      const u8* frame = arena + offset;
      if (offset + kPacketHeaderBytes + nbytes > arena_bytes) {  // never trust it: see `packets`
        frame = nullptr;
        nbytes = 0;
      } else {
        __builtin_prefetch(frame);
      }
      claims.push_back({seq, word, frame, nbytes, static_cast<u32>(shard)});
    });
    if (taken != before) patience_ns_ = std::min(claims.back().nbytes / kBytesPerNs, kMostPatienceNs);
  }
  return taken;
}

bool Consumer::news() {
  for (ShardMemory& m : shards_)
    if (ShardRing::has_news(m, group_)) return true;
  return false;
}

bool Consumer::doze(u64 deadline_ns, u64 timeout_ns, u64 least) {
  const u64 longest = std::min(kLookNs, timeout_ns / kDozes * std::min(least, kMany) / kMany);
  const bool finished = segment_->finished();  // before the look: what came earlier is seen below
  const u64 now = monotonic_ns();
  if (!finished && now < deadline_ns) {
    const u64 sleep = std::min(deadline_ns - now, std::min(doze_ns_, longest));
    doze_ns_ = std::min(2 * doze_ns_, kLookNs);
    const timespec pause{static_cast<time_t>(sleep / 1'000'000'000),
                         static_cast<long>(sleep % 1'000'000'000)};
    nanosleep(&pause, nullptr);
  }
  if (news()) return true;
  return !finished && goes_on();
}

bool Consumer::wait(u64 deadline_ns) {
  u64 now = monotonic_ns();
  const u64 spin = spin_ns_ == 0 ? 0 : spin_ns_ + std::exchange(patience_ns_, 0);
  for (const u64 until = std::min(now + spin, deadline_ns); now < until; now = monotonic_ns()) {
    for (int i = 0; i < 16; ++i) {
      if (news()) return true;
      relax();
    }
  }
  if (now >= deadline_ns) return !segment_->finished() || news();
  ShardMemory& m = shards_[0];
  const u64 bit = 1ULL << (owner_ >> 10);
  // A poller does not say that it waits: no producer pays a system call to wake it.
  const u64 bell = poll_ns_ != 0 ? load(m.doorbell(), Order::acquire) : ShardRing::begin_wait(m, bit);
  const bool finished = segment_->finished();  // before the look: what came earlier is seen below
  if (!finished && !news()) {
    const u64 sleep = std::min(deadline_ns - now, poll_ns_ != 0 ? nap_ns_ : kLookNs);
    const timespec timeout{static_cast<time_t>(sleep / 1'000'000'000),
                           static_cast<long>(sleep % 1'000'000'000)};
    futex(m.doorbell(), FUTEX_WAIT, static_cast<u32>(bell), &timeout);
  }
  if (poll_ns_ == 0)
    std::atomic_ref<u64>(m.waiters()).fetch_and(~bit);  // spare the producer a needless wake-up
  if (news()) {
    nap_ns_ = poll_ns_;
    return true;
  }
  nap_ns_ = std::min(nap_ns_ * 2, poll_ns_ * kLongestNap);
  return !finished && goes_on();  // the caller looks once more in either case
}

void Consumer::filled() { doze_ns_ = std::max(doze_ns_ / 4, kFirstDozeNs); }

bool Consumer::goes_on() {
  const u64 now = monotonic_ns();
  if (now >= next_look_) {
    next_look_ = now + kLookNs;
    look_after_the_dead();
  }
  return !segment_->no_more();
}

// Nothing came for a while: take back what the dead hold, and undo what a dead reaper half did.
void Consumer::look_after_the_dead() {
  tables_.stay_in(group_);
  tables_.reap_dead();
  for (ShardMemory& m : shards_) ShardRing::repair(m, group_);
}

unsigned Consumer::release(const std::vector<Claim>& claims) {
  unsigned delivered = 0;
  for (const Claim& claim : claims)
    delivered += ShardRing::release(shards_[claim.shard], group_, claim.seq, claim.word);
  return delivered;
}

unsigned Consumer::give_back(const std::vector<Claim>& claims) {
  unsigned count = 0;
  for (const Claim& claim : claims)
    count += ShardRing::give_back(shards_[claim.shard], group_, claim.seq, claim.word, at_least_once_);
  if (count != 0) segment_->ring();
  return count;
}

bool Consumer::ended() {
  if (!segment_->no_more()) return false;
  tables_.reap_dead();
  for (ShardMemory& m : shards_)
    for (u64 slot = 0; slot < m.slots(); ++slot) {
      const u64 word = load(m.word(slot, group_), Order::acquire);
      // A packet beyond wseq has words but was never published: its producer died.
      const u64 wseq = load(m.wseq(), Order::acquire);
      if (tag_distance(wseq, word_seq(word)) <= 0) continue;
      if (word_state(word) == kPending) return false;
      // Another member's claim may still come back.
      if (word_state(word) == kClaimed && at_least_once_ && word_owner(word) != owner_) return false;
    }
  return true;
}

void Consumer::close() {
  if (owner_ == 0) return;
  tables_.reap_owner(owner_, group_);
  std::atomic_ref<u64>(segment_->word(kHdrWaiters)).fetch_and(~(1ULL << (owner_ >> 10)));
  tables_.free_owner(owner_);
  tables_.let_go_of_empty_groups();
  owner_ = 0;
}

}  // namespace spmc
