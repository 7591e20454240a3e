// A producer, two competing members of one group and a reaper, any of which may die at any step.
//
// Checked: no reader races the writer (relacy's own race detector on the payload), every payload is
// the one of its sequence number, nothing is delivered twice, nothing is lost but what at_most_once
// allows, and after everyone stopped the words account for every published packet.
#include "memory.hpp"

namespace model {

constexpr u64 kPackets = 4;
constexpr unsigned kSlots = 2;

template <bool AtLeastOnce, bool Wrap, unsigned Batch = 1>
struct RingTest : rl::test_suite<RingTest<AtLeastOnce, Wrap, Batch>, 4> {
  using Mem = Memory<kSlots, 1>;
  using R = spmc::Ring<Mem>;
  // Two packets before the 40-bit tag wraps, or the beginning.
  static constexpr u64 kFirst = Wrap ? (u64{1} << 40) - 2 : 0;

  Mem m{kFirst};
  rl::atomic<unsigned> gone[4];
  unsigned delivered[kPackets] = {};
  unsigned given_up = 0;
  spmc::Tally tally;
  u64 tail = kFirst;

  void before() {
    for (auto& g : gone) g($).store(0, rl::mo_relaxed);
    // At most one death per execution, at a step that the model draws; or none.
    for (int& left : life) left = kForever;
    const unsigned victim = rl::rand(4);
    if (victim < 3) life[victim] = static_cast<int>(rl::rand(24));
    // A reaper that dies between word and hint leaves a packet behind the hint, by design (LOSS):
    // its death has a test of its own below.
  }

  // `Batch` packets are published by one store, fewer where what is queued keeps the ring full.
  void producer() {
    u64 seq = kFirst, published = kFirst;
    const auto publish = [&] {
      published = seq;
      R::commit(m, seq);
    };
    for (unsigned tries = 0; seq != kFirst + kPackets && tries < 12; ++tries) {
      if (seq - tail == kSlots) tail = R::reclaim(m, tail, published, tally);
      if (seq - tail == kSlots) {
        if (seq != published) publish();
        else rl::yield(1, $);
        continue;
      }
      m.write_payload(seq, seq * 3 + 1);
      R::fill(m, seq, seq, 1);
      ++seq;
      if (seq - published == Batch) publish();
    }
    if (seq != published) publish();
  }

  void consumer(unsigned index) {
    const u64 owner = spmc::make_owner(index, 1);
    for (unsigned tries = 0; tries < 6; ++tries) {
      u64 held[kPackets], words[kPackets];
      unsigned count = 0;
      R::claim(m, 0, owner, 2, [&](u64 seq, u64 word) {
        held[count] = seq;
        words[count++] = word;
      });
      if (count == 0) rl::yield(1, $);
      for (unsigned i = 0; i < count; ++i) {
        RL_ASSERT(Mem::load(m.descriptor(held[i]), Order::relaxed) == held[i]);
        const u64 payload = m.read_payload(held[i]);
        RL_ASSERT(payload == held[i] * 3 + 1);
        if (AtLeastOnce && tries == 2) {
          RL_ASSERT(R::give_back(m, 0, held[i], words[i], true));
        } else {
          // Nobody reaps the living, so the lease is still there.
          RL_ASSERT(R::release(m, 0, held[i], words[i]));
          ++delivered[held[i] - kFirst];
        }
      }
    }
  }

  void reaper() {
    for (unsigned tries = 0; tries < 3; ++tries) {
      for (unsigned index = 1; index <= 2; ++index)
        if (gone[index]($).load(rl::mo_acquire) == 2)
          R::reap(m, 0, spmc::make_owner(index, 1), AtLeastOnce);
      rl::yield(1, $);
    }
  }

  void thread(unsigned index) {
    process(gone[index], [&] {
      if (index == 0) producer();
      else if (index < 3) consumer(index);
      else reaper();
    });
  }

  // The quiet moment: whoever is left reaps, drains and counts.
  void after() {
    for (int& left : life) left = kForever;
    for (unsigned index = 1; index <= 2; ++index)
      if (gone[index]($).load(rl::mo_acquire) == 2)
        R::reap(m, 0, spmc::make_owner(index, 1), AtLeastOnce);
    // Somebody who died between word and hint is healed by the repair that idle members do; without
    // a death the hint alone must lead to every packet.
    const bool death = gone[1]($).load(rl::mo_relaxed) == 2 || gone[2]($).load(rl::mo_relaxed) == 2;
    if (death) R::repair(m, 0);
    const u64 owner = spmc::make_owner(5, 1);
    u64 lost = 0;
    // A scan stops at what it takes, so this ends: every packet is claimed at most five times.
    while (R::claim(m, 0, owner, 1, [&](u64 seq, u64 word) {
      RL_ASSERT(m.read_payload(seq) == seq * 3 + 1);
      RL_ASSERT(R::release(m, 0, seq, word));
      ++delivered[seq - kFirst];
    }) != 0) {
    }
    const u64 wseq = m.wseq()($).load(rl::mo_relaxed);
    for (u64 seq = tail; seq != wseq; ++seq) {
      const u64 word = m.word(seq, 0)($).load(rl::mo_relaxed);
      if (spmc::word_seq(word) != (seq & spmc::kSeqMask)) continue;
      RL_ASSERT(spmc::is_final(word));  // nothing is stuck
      lost += spmc::word_state(word) == spmc::kLost;
      RL_ASSERT(spmc::word_state(word) != spmc::kDead);
    }
    lost += tally.lost[0];
    u64 unseen = 0;
    for (u64 i = 0; i < wseq - kFirst; ++i) {
      // A reader may die after the swap and before it counted: then it is delivered and unseen.
      RL_ASSERT(delivered[i] <= 1);
      unseen += delivered[i] == 0;
    }
    RL_ASSERT(unseen <= lost + (death ? 2u : 0u));
    RL_ASSERT(AtLeastOnce ? lost == 0 : lost <= 2);
    if (!death) RL_ASSERT(unseen == 0 && lost == 0);
  }
};

// A reaper dies at any step; a second one and `repair` must bring the packet back all the same.
struct ReaperDeathTest : rl::test_suite<ReaperDeathTest, 3> {
  using Mem = Memory<kSlots, 1>;
  using R = spmc::Ring<Mem>;
  Mem m{0};
  rl::atomic<unsigned> gone[3];
  unsigned delivered = 0;

  void before() {
    for (auto& g : gone) g($).store(0, rl::mo_relaxed);
    for (int& left : life) left = kForever;
    m.write_payload(0, 1);
    R::fill(m, 0, 0, 1);
    R::commit(m, 1);
    // Owner 7 claimed it and is dead.
    R::claim(m, 0, spmc::make_owner(7, 1), 1, [](u64, u64) {});
    life[0] = static_cast<int>(rl::rand(10));
  }
  void thread(unsigned index) {
    process(gone[index], [&] {
      if (index < 2) {
        R::reap(m, 0, spmc::make_owner(7, 1), true);
        return;
      }
      for (unsigned tries = 0; tries < 3; ++tries) {
        if (tries == 1) R::repair(m, 0);
        R::claim(m, 0, spmc::make_owner(3, 1), 1, [&](u64 seq, u64 word) {
          RL_ASSERT(m.read_payload(seq) == 1);
          RL_ASSERT(R::release(m, 0, seq, word));
          ++delivered;
        });
      }
    });
  }
  void after() {
    for (int& left : life) left = kForever;
    R::repair(m, 0);
    R::claim(m, 0, spmc::make_owner(4, 1), 1, [&](u64 seq, u64 word) {
      RL_ASSERT(m.read_payload(seq) == 1);
      RL_ASSERT(R::release(m, 0, seq, word));
      ++delivered;
    });
    RL_ASSERT(delivered == 1);
  }
};

// A packet comes back while another member scans past it: the epoch must keep the hint from passing.
struct RewindTest : rl::test_suite<RewindTest, 3> {
  using Mem = Memory<4, 1>;
  using R = spmc::Ring<Mem>;
  Mem m{0};
  unsigned delivered[3] = {};

  void before() {
    for (int& left : life) left = kForever;
    for (u64 seq = 0; seq < 3; ++seq) {
      m.write_payload(seq, seq + 1);
      R::fill(m, seq, seq, 1);
    }
    R::commit(m, 3);
    R::claim(m, 0, spmc::make_owner(7, 1), 1, [](u64, u64) {});
  }
  void thread(unsigned index) {
    if (index == 0) {
      R::reap(m, 0, spmc::make_owner(7, 1), true);
      return;
    }
    for (unsigned tries = 0; tries < 2; ++tries) take(index);
  }
  void take(unsigned index) {
    R::claim(m, 0, spmc::make_owner(index, 1), 2, [&](u64 seq, u64 word) {
      RL_ASSERT(m.read_payload(seq) == seq + 1);
      RL_ASSERT(R::release(m, 0, seq, word));
      ++delivered[seq];
    });
  }
  void after() {
    take(3);  // no repair here: the hint alone must lead to whatever is left
    take(3);
    for (const unsigned count : delivered) RL_ASSERT(count == 1);
  }
};

// A sleeper and a ringer. The futex is a value compare: sleeping means "the doorbell still reads what
// I read". A wake-up is lost if the sleeper would sleep although everything was published.
struct WakeTest : rl::test_suite<WakeTest, 3> {
  using Mem = Memory<4, 1>;
  using R = spmc::Ring<Mem>;
  Mem m{0};
  u64 slept_on[2] = {~u64{0}, ~u64{0}};
  bool asleep[2] = {};

  void before() {
    for (int& left : life) left = kForever;
  }
  void thread(unsigned index) {
    if (index == 0) {
      for (u64 seq = 0; seq < 2; ++seq) {
        m.write_payload(seq, seq + 1);
        R::fill(m, seq, seq, 1);
        R::commit(m, seq + 1);
      }
      return;
    }
    for (unsigned tries = 0; tries < 2 && !asleep[index - 1]; ++tries) {
      R::claim(m, 0, spmc::make_owner(index, 1), 1, [&](u64 seq, u64 word) {
        RL_ASSERT(m.read_payload(seq) == seq + 1);
        RL_ASSERT(R::release(m, 0, seq, word));
      });
      const u64 bell = R::begin_wait(m, u64{1} << index);
      if (R::has_news(m, 0)) continue;
      slept_on[index - 1] = bell;
      asleep[index - 1] = true;
    }
  }
  void after() {
    const u64 bell = m.doorbell()($).load(rl::mo_relaxed);
    const u64 waiting = m.waiters()($).load(rl::mo_relaxed);
    for (unsigned i = 0; i < 2; ++i) {
      if (!asleep[i]) continue;
      // Whoever still sleeps (the futex compare passed and nobody rang since) must either be seen
      // by the next ringer or have nothing to wake up for.
      const bool sleeping = slept_on[i] == bell;
      const bool marked = (waiting >> (i + 1)) & 1;
      if (sleeping) RL_ASSERT(marked);
      if (sleeping) RL_ASSERT(!R::has_news(m, 0));
    }
  }
};

// The same sleeper, but what it waits for comes back from another member instead of the producer.
struct WakeByReturnTest : rl::test_suite<WakeByReturnTest, 2> {
  using Mem = Memory<2, 1>;
  using R = spmc::Ring<Mem>;
  Mem m{0};
  u64 held = 0;
  bool asleep = false;
  u64 slept_on = 0;

  void before() {
    for (int& left : life) left = kForever;
    R::fill(m, 0, 0, 1);
    R::commit(m, 1);
    R::claim(m, 0, spmc::make_owner(1, 1), 1, [&](u64, u64 word) { held = word; });
  }
  void thread(unsigned index) {
    if (index == 0) {
      RL_ASSERT(R::give_back(m, 0, 0, held, true));
      R::ring(m);
      return;
    }
    slept_on = R::begin_wait(m, 2);
    asleep = !R::has_news(m, 0);
  }
  void after() {
    if (!asleep || slept_on != m.doorbell()($).load(rl::mo_relaxed)) return;
    RL_ASSERT(!R::has_news(m, 0));
  }
};

}  // namespace model

// usage: ring_test [executions per test] [mutant] [verbose]
int main(int argc, char** argv) {
  const auto number = [&](int i, long otherwise) { return argc > i ? std::atol(argv[i]) : otherwise; };
  mutant = static_cast<int>(number(2, 0));
  std::ostream quiet(nullptr);  // discards; relacy replaces operator new, so no string streams
  unsigned long long total = 0;
  const auto run = [&](const char* name, auto simulate) {
    rl::test_params params;
    params.iteration_count = static_cast<rl::iteration_t>(number(1, 100000));
    params.progress_stream = &quiet;
    if (argc <= 3) params.output_stream = &quiet;
    const bool ok = simulate(params);
    total += params.stop_iteration;
    if (mutant == 0 || !ok)
      std::printf("  %-28s %8llu executions  %s\n", name,
                  static_cast<unsigned long long>(params.stop_iteration),
                  ok ? "0 errors" : rl::test_result_str(params.test_result));
    return ok;
  };
  using namespace model;
  // A mutant is done with at its first error.
  const bool all =
      run("at_least_once", [](auto& p) { return rl::simulate<RingTest<true, false>>(p); }) &&
      run("at_most_once", [](auto& p) { return rl::simulate<RingTest<false, false>>(p); }) &&
      run("at_least_once across a wrap", [](auto& p) { return rl::simulate<RingTest<true, true>>(p); }) &&
      run("at_least_once, batches", [](auto& p) { return rl::simulate<RingTest<true, false, 2>>(p); }) &&
      run("at_most_once, batches", [](auto& p) { return rl::simulate<RingTest<false, true, 2>>(p); }) &&
      run("death of a reaper", [](auto& p) { return rl::simulate<ReaperDeathTest>(p); }) &&
      run("rewind during a scan", [](auto& p) { return rl::simulate<RewindTest>(p); }) &&
      run("sleep and wake", [](auto& p) { return rl::simulate<WakeTest>(p); }) &&
      run("wake by a returned packet", [](auto& p) { return rl::simulate<WakeByReturnTest>(p); });
  std::printf("  %llu executions, %s\n", total, all ? "0 errors" : "stopped at an error");
  return all ? 0 : 1;
}
