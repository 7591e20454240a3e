#include "producer.hpp"

#include <time.h>

namespace spmc {
namespace {
constexpr u64 kDeathCheckNs = 50'000'000;
constexpr u64 kStandstillNs = 1'000'000'000;
constexpr u64 kOwnNs = 10, kNearNs = 130;  // a line of another core's: more; at most, where they share a cache

u64 now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<u64>(time.tv_sec) * 1'000'000'000ULL + static_cast<u64>(time.tv_nsec);
}
}  // namespace

Producer::Producer(std::shared_ptr<Segment> segment, u64 shard, const CopyPolicy& policy,
                   std::optional<u64> source)
    : segment_(std::move(segment)),
      tables_(*segment_),
      m_(segment_->shard(shard)),
      shard_(shard),
      source_(source.value_or(segment_->source())),
      policy_(policy),
      arena_(segment_->geometry().arena_bytes, policy.window),
      base_(segment_->arena(shard)),
      slots_(segment_->geometry().slots),
      next_(load(m_.wseq())),
      committed_(next_),
      tail_(next_),
      starts_(slots_),
      choices_{StoreChoice(policy.window), StoreChoice(policy.window), StoreChoice(policy.window),
               StoreChoice(policy.window), StoreChoice(policy.window)} {}

u8* Producer::reserve(u64 nbytes, Refusal& refusal) {
  refusal = Refusal::closed;
  if (segment_->refusing()) return nullptr;
  refusal = Refusal::too_large;
  if (nbytes > segment_->geometry().max_payload) return nullptr;
  const u64 need = frame_bytes(nbytes);
  cached_ = nbytes < policy_.streaming_threshold ||
            (need <= arena_.window() && wants_cached(choice(nbytes)));
  if (next_ - tail_ == slots_ || (cached_ && arena_.wants_reclaim(need))) reclaim();
  std::optional<u64> offset;
  for (int attempt = 0;; ++attempt) {
    if (next_ - tail_ != slots_) offset = allocate(nbytes, need);
    if (offset) break;
    if (attempt == 0) {
      reclaim(true);
      continue;
    }
    // Full. A dead reader may hold the oldest slot: look, but not at every refusal.
    const u64 now = now_ns();
    refusal = Refusal::full;
    if (attempt > 1 || now < next_death_check_) return nullptr;
    next_death_check_ = now + kDeathCheckNs;
    tables_.reap_dead();
    tables_.let_go_of_empty_groups();
    pass_over_who_stands_still(now);
    reclaim(true);
  }
  refusal = Refusal::none;
  reserved_ = *offset;
  return base_ + reserved_ + kPacketHeaderBytes;
}

// Streaming stores where the window has no room: outside of it cached ones would find cold memory.
std::optional<u64> Producer::allocate(u64 nbytes, u64 need) {
  if (nbytes < policy_.streaming_threshold) return arena_.allocate(need, true);
  std::optional<u64> warm = cached_ ? arena_.in_window(need) : std::nullopt;
  if (cached_ && !warm) warm = wait_for_window(nbytes, need);
  cached_ = warm.has_value();
  return warm ? warm : arena_.allocate(need, false);
}

bool Producer::wants_cached(StoreChoice& stores) {
  if (stores.due()) stores.answer(readers_are_near());
  return stores.cached();
}

// By what the slots' lines take to come from the reader that wrote them last. A line that only this
// process has written says nothing, nor does one that was fetched ahead: they come from caches of its own.
bool Producer::readers_are_near() {
  const u64 own = ticks_in(kOwnNs), near = ticks_in(kNearNs);
  int votes = 0;
  for (u64 back = 2; back <= 64 && back <= next_ - tail_; back += back / 2 + 1) {
    const u64 took = ticks_to_load(m_.word(next_ - back, 0));
    if (took > own && was_read(next_ - back)) votes += took <= near ? 1 : -1;
  }
  return votes > 0;
}

bool Producer::was_read(u64 seq) {
  for (unsigned g = 0; g < kGroups; ++g) {
    const u64 state = word_state(load(m_.word(seq, g)));
    if (state == kClaimed || state == kDelivered) return true;
  }
  return false;
}

// Readers that are about to finish what lies there: waiting costs no more than going elsewhere would.
std::optional<u64> Producer::wait_for_window(u64 nbytes, u64 need) {
  StoreChoice& stores = choice(nbytes);
  const u64 most = stores.worth_waiting(nbytes);
  if (most == 0) return std::nullopt;
  std::optional<u64> warm;
  for (const u64 start = ticks(); !warm && ticks() - start < most;) {
    for (int i = 0; i < 16; ++i) relax();
    reclaim();
    warm = arena_.in_window(need);
  }
  stores.waited(warm.has_value());
  return warm;
}

StoreChoice& Producer::choice(u64 nbytes) {
  const auto width = static_cast<unsigned>(std::bit_width(nbytes));
  const unsigned size_class = width < 15 ? 0 : (width - 15) / 2;
  return choices_[size_class < kSizeClasses ? size_class : kSizeClasses - 1];
}

void Producer::copy(u8* to, const u8* from, u64 bytes) {
  if (bytes < policy_.streaming_threshold) return copy_cached(to, from, bytes);
  const u64 start = ticks();
  if (cached_) copy_cached(to, from, bytes);
  else copy_streaming(to, from, bytes);
  choice(bytes).copied(cached_, bytes, ticks() - start);
}

// A reader that joined late and may lose packets (`subscribe`) must not hold up the others, not when it is
// stopped (SIGSTOP, a debugger) with the oldest packet in its hands either.
void Producer::pass_over_who_stands_still(u64 now) {
  if (tail_ != full_at_) {
    full_at_ = tail_;
    full_since_ = now;
  }
  if (now - full_since_ < kStandstillNs) return;
  for (const GroupInfo& info : filters_)
    if (info.temporary && !info.at_least_once &&
        !is_final(load(m_.word(tail_, info.index), Order::acquire)))
      tables_.pass_over(info.index);
}

void Producer::abort() { arena_.undo(reserved_); }

void Producer::queue(u64 nbytes, u64 hook_id) {
  const u64 mask = load(segment_->word(kHdrGroupMask), Order::acquire);
  if (mask != mask_) refresh_groups(mask);
  arena_.undo(reserved_ + frame_bytes(nbytes));  // give back what was reserved but not used
  starts_[next_ & (slots_ - 1)] = reserved_;
  u32 want = static_cast<u32>(mask_ & 0xFF);
  if (filtering_) want = wanted(hook_id);
  ShardRing::fill(m_, next_, (reserved_ / 64) << 32 | nbytes, want);
  bytes_ += nbytes;
  ++next_;
}

void Producer::commit() {
  if (next_ == committed_) return;
  // The counters of this commit go to the record that is not valid now: a kill before the store of
  // wseq leaves the other one, whose `upto` is still the newest that does not exceed wseq.
  const u64 record = kShPublished + published_ * kShPublishedStride;
  store(m_.at(record + 8), bytes_);
  if (missed_dirty_ != 0) {
    --missed_dirty_;
    store(m_.at(record + 16), mask_);
    for (unsigned g = 0; g < kGroups; ++g) store(m_.at(record + 24 + g * 8), missed_[g]);
  }
  store(m_.at(record), next_);
  published_ ^= 1;
  committed_ = next_;
  ShardRing::commit(m_, next_);
}

void Producer::reclaim(bool full) {
  arena_.reclaimed();
  u32 abandoned = 0;
  if (full) {
    const u64 mask = load(segment_->word(kHdrGroupMask), Order::acquire);
    abandoned = static_cast<u32>(mask & ~(mask >> kActiveShift)) & 0xFF;
  }
  const u64 tail = ShardRing::reclaim(m_, tail_, committed_, harvest_, abandoned);
  if (tail != tail_) {
    tail_ = tail;
    // Same two-record scheme, selected by its own word: these slots leave the window that an
    // account scans exactly when their totals enter the record.
    const u64 valid = load(m_.at(kShHarvestSelect)) & 1;
    const u64 record = kShHarvest + (valid ^ 1) * kShHarvestStride;
    store(m_.at(record), tail);
    for (unsigned g = 0; g < kGroups; ++g) {
      store(m_.at(record + 8 + g * 8), harvest_.lost[g]);
      store(m_.at(record + 64 + g * 8), harvest_.dead[g]);
      store(m_.at(record + 120 + g * 8), harvest_.again[g]);
      store(m_.at(record + 176 + g * 8), harvest_.left[g]);
    }
    store(m_.at(kShHarvestSelect), valid ^ 1, Order::release);
  }
  // Frames that are queued but not committed keep the arena from being empty.
  if (tail_ == next_) arena_.clear();
  else arena_.free_to(starts_[tail_ & (slots_ - 1)]);
}

void Producer::refresh_groups(u64 mask) {
  for (unsigned g = 0; g < kGroups; ++g)
    if (((mask & ~mask_) >> g) & 1) missed_[g] = next_ - segment_->initial_seq();
  mask_ = mask;
  missed_dirty_ = 2;
  filters_.clear();
  for (unsigned g = 0; g < kGroups; ++g)
    if ((mask >> g) & 1) filters_.push_back(tables_.group(g));
  filtering_ = (mask & 0xFF) != mask >> kActiveShift;
  for (const GroupInfo& info : filters_) filtering_ = filtering_ || !info.hooks.empty();
}

u32 Producer::wanted(u64 hook_id) {
  u32 want = 0;
  for (const GroupInfo& info : filters_) {
    const bool active = (mask_ >> kActiveShift >> info.index) & 1;
    const bool all = info.hooks.empty();
    if (active && (all || (hook_id < kNames && (info.hooks[hook_id / 64] >> (hook_id % 64)) & 1))) {
      want |= 1u << info.index;
    } else {
      ++missed_[info.index];
      missed_dirty_ = 2;
    }
  }
  return want;
}

double Producer::fill_ratio() {
  reclaim();
  const double slots = static_cast<double>(next_ - tail_) / static_cast<double>(slots_);
  const double bytes = static_cast<double>(arena_.used()) / static_cast<double>(arena_.bytes());
  return slots > bytes ? slots : bytes;
}

}  // namespace spmc
