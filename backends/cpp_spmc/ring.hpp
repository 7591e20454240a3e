// The protocol of one shard: a single producer, competing consumers in groups, any of them may die.
//
// This code is a template over its memory `M`, so that production (atomics.hpp: std::atomic_ref on
// shared memory) and the model checker (tests/model: relacy atoms) run the same lines.
//
// ROLES
//   producer   one thread of one process; the only writer of wseq, descriptors and arena
//   consumer   a member of a group; holds an owner id (index + generation) in the owner table
//   reaper     anyone; acts for an owner that the kernel says is dead
//
// LAYOUT (layout.hpp)
//   group word = seq:40 | redeliveries:4 | owner index:6 | owner generation:10 | state:4
//   hint       = epoch:24 | seq:40, per group: the lowest sequence number that may be claimable
//   wseq       = next sequence number, 64 bits, modulo 2^64
//
// PROTOCOL
//   1. The producer reclaims: the oldest slot may be reused once every group's word is final.
//   2. It copies the payload, writes descriptor and group words (PENDING or MISSED), then stores
//      wseq, for one packet or for many. That store is the only commit point: a producer killed
//      before it published nothing.
//   3. It rings the doorbell if, after that store, anyone is marked as waiting.
//   4. A consumer scans from the hint to wseq and claims with ONE compare-and-swap
//      PENDING -> CLAIMED(owner). There is no ticket, so a kill leaves no ownerless packet.
//   5. It reads, then releases: CLAIMED(me) -> DELIVERED. A failed swap means that the lease was
//      taken away meanwhile: what was read may be torn and must be dropped.
//   6. A reaper returns CLAIMED(dead): PENDING with one more redelivery, DEAD after five deliveries
//      (at_least_once), or LOST (at_most_once). Then it rewinds the hint and bumps its epoch, so a
//      scan that already passed the packet cannot move the hint beyond it.
//   7. A waiter reads the doorbell, sets its bit, looks once more, and only then sleeps on the value
//      that it read. The ringer clears the bits first and moves the doorbell second.
//
// ORDERING (grep "S[0-9]:" reads as the protocol)
//   S1: store-release of wseq pairs with S2 load-acquire: payload, descriptor and words are visible
//       before the sequence number. (It is seq_cst because of S7.)
//   S3: compare-and-swap-release of a final word pairs with S4 load-acquire: a reader's loads are
//       over before the producer overwrites what it read.
//   S5: compare-and-swap-release of a rewound hint pairs with S6 load-acquire: whoever sees the new
//       epoch sees the returned word as PENDING.
//   S7: store wseq, then load waiters; S8: set a waiter bit, then load wseq. All four are seq_cst:
//       at least one side sees the other (store-load, which release/acquire does not order).
//   S9: the doorbell is moved with release after the bits are cleared; the waiter loads it with
//       acquire before it sets its bit, so a ring that it does not see will find the bit.
//
// INVARIANTS
//   Only CLAIMED leaves a word through its owner or a reaper; only the producer leaves a final
//   state; every transition is one swap on one word that holds the sequence number, so a stale
//   participant fails its swap instead of touching the slot's next packet.
//
// LOSS
//   Killed consumer: at_least_once 0 lost, at_most_once exactly what it held. Killed producer: the
//   packet that it was writing was never offered. Killed reaper between word and hint: the packet is
//   PENDING behind the hint until `repair`, which every idle consumer does (within 50 ms).
//
// NOT COVERED
//   A participant that sleeps through 2^40 packets of a shard, 2^24 rewinds of one hint or 2^10
//   reuses of its owner index between two of its own instructions. Writers that ignore the protocol.
//
// PROOF
//   tests/model: relacy runs this file with a crash at every step; each order below has a mutant.
#pragma once

#include "layout.hpp"

namespace spmc {

enum class Order { relaxed, acquire, release, acq_rel, seq_cst };

#ifndef SPMC_MUTANT
#define SPMC_MUTANT 0
#endif
// Site n, weakened when mutant n is compiled. Production compiles mutant 0.
template <int Site>
constexpr Order site(Order order, Order weak = Order::relaxed) {
  return SPMC_MUTANT == Site ? weak : order;
}

enum State : u64 {
  kFree = 0,
  kPending = 1,
  kClaimed = 2,
  kDelivered = 3,  // from here on: final
  kLost = 4,
  kDead = 5,
  kMissed = 6,     // never meant for this group
  kLeft = 7,       // nobody of its group was there, or went on, when the ring was full
};

inline constexpr u64 kSeqMask = (1ULL << 40) - 1;
inline constexpr u64 kOwnerMask = 0xFFFF;  // index:6 | generation:10

constexpr u64 make_word(u64 seq, u64 redeliveries, u64 owner, u64 state) {
  return ((seq & kSeqMask) << 24) | (redeliveries << 20) | (owner << 4) | state;
}
constexpr u64 word_seq(u64 word) { return word >> 24; }
constexpr u64 word_redeliveries(u64 word) { return (word >> 20) & 0xF; }
constexpr u64 word_owner(u64 word) { return (word >> 4) & kOwnerMask; }
constexpr u64 word_state(u64 word) { return word & 0xF; }
constexpr bool is_final(u64 word) { return word_state(word) >= kDelivered; }
constexpr u64 with_state(u64 word, u64 state) { return (word & ~0xFFFFFULL) | state; }
constexpr u64 make_owner(u64 index, u64 generation) { return (index << 10) | (generation & 0x3FF); }

// a - b for 40-bit sequence tags: signed, so that a tag from before a wrap still compares right.
constexpr std::int64_t tag_distance(u64 a, u64 b) {
  return static_cast<std::int64_t>(((a - b) & kSeqMask) << 24) >> 24;
}
static_assert(tag_distance(0, kSeqMask) == 1, "the tag after the last one is the first one");
static_assert(tag_distance(kSeqMask, 0) == -1, "and the other way round");

// What happens to a claimed packet whose reader did not finish it.
constexpr u64 returned(u64 word, bool at_least_once) {
  if (!at_least_once) return with_state(word, kLost);
  const u64 deliveries = word_redeliveries(word) + 1;
  if (deliveries >= kMaxDeliveries) return with_state(word, kDead);
  return make_word(word_seq(word), deliveries, 0, kPending);
}

struct Tally {
  u64 lost[kGroups] = {}, dead[kGroups] = {}, again[kGroups] = {}, left[kGroups] = {};
  void add(unsigned group, u64 word) {
    const u64 state = word_state(word);
    if (state == kLost) ++lost[group];
    if (state == kDead) ++dead[group];
    if (state == kLeft) ++left[group];
    again[group] += word_redeliveries(word);
  }
};

template <class M>
struct Ring {
  // ---- producer -----------------------------------------------------------------------------
  // Step 1: the new tail after passing every slot whose words are all final, at most to `end`.
  // Packets that wait for one of `abandoned` (groups without members) are passed over.
  static u64 reclaim(M& m, u64 tail, u64 end, Tally& tally, u32 abandoned = 0) {
    for (; tail != end; ++tail) {
      u64 words[kGroups];
      for (unsigned g = 0; g < m.groups(); ++g) {
        words[g] = M::load(m.word(tail, g), site<4>(Order::acquire));  // S4: pairs with S3
        if (word_state(words[g]) == kPending && (abandoned >> g & 1) != 0) {
          const u64 left = with_state(words[g], kLeft);
          if (M::cas(m.word(tail, g), words[g], left, Order::acq_rel)) words[g] = left;
        }
        if (SPMC_MUTANT != 20 && !is_final(words[g])) return tail;
      }
      for (unsigned g = 0; g < m.groups(); ++g) {
        constexpr u64 kPlain = (1ULL << kDelivered) | (1ULL << kMissed);
        if (((kPlain >> word_state(words[g])) & 1) == 0 || word_redeliveries(words[g]) != 0)
          tally.add(g, words[g]);
      }
    }
    return tail;
  }

  // Step 2 without the commit: the slot of `seq` is ours, its payload is written.
  static void fill(M& m, u64 seq, u64 descriptor, u32 wanted) {
    M::store(m.descriptor(seq), descriptor, Order::relaxed);
    for (unsigned g = 0; g < m.groups(); ++g) {
      const u64 state = (wanted >> g) & 1 ? kPending : kMissed;
      M::store(m.word(seq, g), make_word(seq, 0, 0, state), Order::relaxed);
    }
  }

  static void commit(M& m, u64 next_seq) {
    M::store(m.wseq(), next_seq, site<1>(site<16>(Order::seq_cst, Order::release)));  // S1, S7
    ring(m);
  }

  // Step 3. Clearing first: a waiter that sets its bit later will see the doorbell move or be seen.
  static void ring(M& m) {
    if (M::load(m.waiters(), site<7>(Order::seq_cst)) == 0) return;  // S7: second half
    if (SPMC_MUTANT == 23) {  // the wrong way round: a sleeper's new bit is cleared, unheard
      M::fetch_add(m.doorbell(), 1, Order::release);
      M::exchange(m.waiters(), 0, Order::acq_rel);
      m.wake();
      return;
    }
    M::exchange(m.waiters(), 0, site<12>(Order::acq_rel));
    M::fetch_add(m.doorbell(), 1, site<9>(Order::release));  // S9: pairs with begin_wait
    m.wake();
  }

  // ---- consumer -----------------------------------------------------------------------------
  // Where a scan starts and ends; false when nothing unscanned is there.
  static bool span(M& m, u64 hint, u64 end, u64& seq) {
    const std::int64_t behind = tag_distance(end, hint);
    if (behind <= 0) return false;
    const u64 back = static_cast<u64>(behind) > m.slots() ? m.slots() : static_cast<u64>(behind);
    seq = end - back;  // older ones are final: their slots were reused
    return true;
  }

  // Step 4: claim up to `most` packets; `take(seq, word)` is told of each, in order.
  template <class Take>
  static unsigned claim(M& m, unsigned group, u64 owner, unsigned most, Take&& take) {
    u64 hint = M::load(m.hint(group), site<6>(Order::acquire));   // S6: pairs with S5
    const u64 end = M::load(m.wseq(), site<2>(Order::acquire));  // S2: pairs with S1
    u64 seq = 0;
    if (!span(m, hint, end, seq)) return 0;
    unsigned taken = 0;
    while (seq != end && taken < most) {
      m.prefetch(seq, end);
      u64 word = M::load(m.word(seq, group), Order::relaxed);
      if (word_seq(word) == (seq & kSeqMask) && word_state(word) == kPending) {
        const u64 mine = make_word(seq, word_redeliveries(word), owner, kClaimed);
        if (SPMC_MUTANT == 21) {  // check-then-store: two consumers own one packet
          M::store(m.word(seq, group), mine, Order::acq_rel);
        } else if (!M::cas(m.word(seq, group), word, mine, site<13>(Order::acq_rel))) {
          continue;  // someone was faster: look at the same word again
        }
        take(seq, mine);
        ++taken;
      }
      ++seq;
    }
    // Losing this swap only costs a longer scan: another scan moved it, or a reaper rewound it.
    if (SPMC_MUTANT == 22) hint = M::load(m.hint(group), Order::acquire);  // ignores the epoch
    M::cas(m.hint(group), hint, (hint & ~kSeqMask) | (seq & kSeqMask), site<14>(Order::acq_rel));
    return taken;
  }

  // Step 5. False: the lease was taken away; drop what was read.
  static bool release(M& m, unsigned group, u64 seq, u64 claimed) {
    return finish(m, group, seq, claimed, with_state(claimed, kDelivered));
  }

  // The reader failed but lives: as a reaper would do for it.
  static bool give_back(M& m, unsigned group, u64 seq, u64 claimed, bool at_least_once) {
    const u64 next = returned(claimed, at_least_once);
    if (!finish(m, group, seq, claimed, next)) return false;
    if (word_state(next) == kPending) rewind(m, group, seq);
    return true;
  }

  // ---- reaper -------------------------------------------------------------------------------
  // Step 6 for one group: everything `owner` (dead) holds. Returns packets taken back.
  static unsigned reap(M& m, unsigned group, u64 owner, bool at_least_once) {
    unsigned count = 0;
    for (u64 slot = 0; slot < m.slots(); ++slot) {
      u64 word = M::load(m.word(slot, group), site<18>(Order::acquire));
      if (word_state(word) != kClaimed || word_owner(word) != owner) continue;
      const u64 next = returned(word, at_least_once);
      if (!finish(m, group, slot, word, next)) continue;
      if (word_state(next) == kPending) rewind(m, group, word_seq(word));
      ++count;
    }
    return count;
  }

  static void rewind(M& m, unsigned group, u64 seq) {
    u64 hint = M::load(m.hint(group), Order::relaxed);
    u64 next = 0;
    do {
      const u64 low = tag_distance(hint, seq) > 0 ? seq & kSeqMask : hint & kSeqMask;
      const u64 epoch = SPMC_MUTANT == 24 ? hint >> 40 : (hint >> 40) + 1;
      next = (epoch << 40) | low;
    } while (!M::cas(m.hint(group), hint, next, site<5>(site<17>(Order::seq_cst, Order::acq_rel))));  // S5, S7
  }

  // Undo whatever a reaper killed between word and hint left behind: scan the whole window again.
  static void repair(M& m, unsigned group) {
    rewind(m, group, M::load(m.wseq(), Order::acquire) - m.slots());
  }

  // ---- waiting ------------------------------------------------------------------------------
  // Step 7: returns the doorbell value to sleep on. Look for packets after this, then sleep.
  static u64 begin_wait(M& m, u64 bit) {
    const u64 bell = M::load(m.doorbell(), site<11>(Order::acquire));  // S9: pairs with ring
    M::fetch_or(m.waiters(), bit, site<8>(Order::seq_cst));  // S8: first half
    return bell;
  }
  static bool has_news(M& m, unsigned group) {
    const u64 hint = M::load(m.hint(group), site<15>(Order::seq_cst));
    return tag_distance(M::load(m.wseq(), site<10>(Order::seq_cst)), hint) > 0;  // S8: second half
  }

 private:
  static bool finish(M& m, unsigned group, u64 seq, u64 claimed, u64 next) {
    return M::cas(m.word(seq, group), claimed, next, site<3>(Order::acq_rel));  // S3: pairs with S4
  }
};

}  // namespace spmc
