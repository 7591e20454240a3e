// The memory of ring.hpp as relacy atoms, and processes that may die before any of their steps.
#pragma once

// ring.hpp first: relacy redefines new, delete, assert and the memory_order names as macros.
#include <optional>
#include <vector>

// Which order is weakened or which bug is seeded; 0: none. Production compiles the constant 0.
inline int mutant = 0;
#define SPMC_MUTANT mutant
#include "ring.hpp"

#include <relacy/relacy.hpp>

namespace model {

using spmc::Order;
using spmc::u64;

inline rl::memory_order relacy_order(Order order) {
  switch (order) {
    case Order::relaxed: return rl::mo_relaxed;
    case Order::acquire: return rl::mo_acquire;
    case Order::release: return rl::mo_release;
    case Order::acq_rel: return rl::mo_acq_rel;
    case Order::seq_cst: break;
  }
  return rl::mo_seq_cst;
}

// Thrown at the step before which the model kills this process.
struct Killed {};

// How many more steps each process lives; the model draws it. relacy's threads are fibers of one
// thread, so plain variables are private enough as long as a process only touches its own.
inline constexpr int kForever = -1;
inline int life[8];
inline void step() {
  int& left = life[rl::thread_index()];
  if (left == 0) throw Killed{};
  if (left > 0) --left;
}

template <unsigned Slots, unsigned Groups>
struct Memory {
  using Cell = rl::atomic<u64>;
  Cell wseq_, waiters_, doorbell_;
  Cell hints_[Groups];
  Cell words_[Slots][Groups];
  Cell descriptors_[Slots];
  rl::var<u64> payloads_[Slots];  // not atomic: relacy reports a reader racing the writer

  explicit Memory(u64 first_seq = 0) {
    wseq_($).store(first_seq, rl::mo_relaxed);
    waiters_($).store(0, rl::mo_relaxed);
    doorbell_($).store(0, rl::mo_relaxed);
    for (auto& hint : hints_) hint($).store(first_seq & spmc::kSeqMask, rl::mo_relaxed);
    for (unsigned s = 0; s < Slots; ++s) {
      for (unsigned g = 0; g < Groups; ++g) words_[s][g]($).store(0, rl::mo_relaxed);
      descriptors_[s]($).store(0, rl::mo_relaxed);
      payloads_[s]($) = 0;
    }
  }

  static constexpr u64 slots() { return Slots; }
  static constexpr unsigned groups() { return Groups; }
  Cell& wseq() { return wseq_; }
  Cell& waiters() { return waiters_; }
  Cell& doorbell() { return doorbell_; }
  Cell& hint(unsigned group) { return hints_[group]; }
  Cell& word(u64 seq, unsigned group) { return words_[seq % Slots][group]; }
  Cell& descriptor(u64 seq) { return descriptors_[seq % Slots]; }
  void write_payload(u64 seq, u64 value) { step(); payloads_[seq % Slots]($) = value; }
  u64 read_payload(u64 seq) { step(); return payloads_[seq % Slots]($); }
  void wake() {}  // sleepers of the model poll the doorbell: see wake_test.cpp
  void prefetch(u64, u64) {}

  static u64 load(Cell& cell, Order order) { step(); return cell($).load(relacy_order(order)); }
  static void store(Cell& cell, u64 value, Order order) {
    step();
    cell($).store(value, relacy_order(order));
  }
  static bool cas(Cell& cell, u64& expected, u64 value, Order order) {
    step();
    return cell($).compare_exchange_strong(
        expected, value, relacy_order(order),
        order == Order::relaxed || order == Order::release ? rl::mo_relaxed
        : order == Order::seq_cst                          ? rl::mo_seq_cst
                                                           : rl::mo_acquire);
  }
  static u64 exchange(Cell& cell, u64 value, Order order) {
    step();
    return cell($).exchange(value, relacy_order(order));
  }
  static u64 fetch_add(Cell& cell, u64 value, Order order) {
    step();
    return cell($).fetch_add(value, relacy_order(order));
  }
  static u64 fetch_or(Cell& cell, u64 value, Order order) {
    step();
    return cell($).fetch_or(value, relacy_order(order));
  }
};

// Runs one process to its end or death. Its last act is what the kernel does for a dead process:
// make its death visible after everything that it wrote (pidfd).
template <class Body>
void process(rl::atomic<unsigned>& gone, Body&& body) {
  try {
    body();
  } catch (Killed&) {
    gone($).store(2, rl::mo_release);
    return;
  }
  gone($).store(1, rl::mo_release);
}

}  // namespace model
