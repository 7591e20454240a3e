// The production memory of ring.hpp: std::atomic_ref on words of the mapped segment.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>

#include "ring.hpp"

namespace spmc {

static_assert(std::atomic_ref<u64>::is_always_lock_free,
              "a lock inside an atomic would be private to one process");

constexpr std::memory_order std_order(Order order) {
  switch (order) {
    case Order::relaxed: return std::memory_order_relaxed;
    case Order::acquire: return std::memory_order_acquire;
    case Order::release: return std::memory_order_release;
    case Order::acq_rel: return std::memory_order_acq_rel;
    case Order::seq_cst: break;
  }
  return std::memory_order_seq_cst;
}

inline u64 load(u64& cell, Order order = Order::relaxed) {
  return std::atomic_ref<u64>(cell).load(std_order(order));
}
inline void store(u64& cell, u64 value, Order order = Order::relaxed) {
  std::atomic_ref<u64>(cell).store(value, std_order(order));
}
inline bool cas(u64& cell, u64& expected, u64 value, Order order = Order::acq_rel) {
  return std::atomic_ref<u64>(cell).compare_exchange_strong(
      expected, value, std_order(order),
      order == Order::seq_cst ? std::memory_order_seq_cst : std::memory_order_acquire);
}

// Shared (not FUTEX_PRIVATE): waiter and waker are different processes. The word is the low half.
inline long futex(u64& cell, int operation, u32 value, const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<u32*>(&cell), operation, value, timeout, nullptr, 0);
}

class ShardMemory {
 public:
  ShardMemory() = default;
  ShardMemory(u8* segment, const Geometry& geometry, u64 shard)
      : header_(segment),
        control_(segment + kShardsOffset + shard * geometry.shard_stride),
        slots_(geometry.slots) {}

  u64 slots() const { return slots_; }
  static constexpr unsigned groups() { return kGroups; }

  u64& at(u64 offset) const { return *reinterpret_cast<u64*>(control_ + offset); }
  u64& wseq() const { return at(kShWseq); }
  u64& hint(unsigned group) const { return at(kShHints + group * kShHintStride); }
  u64& word(u64 seq, unsigned group) const { return at(slot(seq) + group * 8); }
  u64& descriptor(u64 seq) const { return at(slot(seq) + kSlotDescriptor); }
  u64& waiters() const { return *reinterpret_cast<u64*>(header_ + kHdrWaiters); }
  u64& doorbell() const { return *reinterpret_cast<u64*>(header_ + kHdrDoorbell); }

  void wake() const { futex(doorbell(), FUTEX_WAKE, INT_MAX, nullptr); }

  // A slot's line was last written by another core: ask for it before the scan gets there.
  void prefetch(u64 seq, u64 end) const {
    if (end - seq > 8) __builtin_prefetch(&at(slot(seq + 8)), 1);
  }

  static u64 load(u64& cell, Order order) { return spmc::load(cell, order); }
  static void store(u64& cell, u64 value, Order order) { spmc::store(cell, value, order); }
  static bool cas(u64& cell, u64& expected, u64 value, Order order) {
    return spmc::cas(cell, expected, value, order);
  }
  static u64 exchange(u64& cell, u64 value, Order order) {
    return std::atomic_ref<u64>(cell).exchange(value, std_order(order));
  }
  static u64 fetch_add(u64& cell, u64 value, Order order) {
    return std::atomic_ref<u64>(cell).fetch_add(value, std_order(order));
  }
  static u64 fetch_or(u64& cell, u64 value, Order order) {
    return std::atomic_ref<u64>(cell).fetch_or(value, std_order(order));
  }

 private:
  u64 slot(u64 seq) const { return kShSlots + (seq & (slots_ - 1)) * kSlotStride; }

  u8* header_ = nullptr;
  u8* control_ = nullptr;
  u64 slots_ = 0;
};

using ShardRing = Ring<ShardMemory>;

}  // namespace spmc
