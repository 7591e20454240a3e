// Threads on one mapping: the production ring under ThreadSanitizer (or at full speed).
// usage: threads_test [packets]. Two groups, two members each; every byte of every packet is checked.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "account.hpp"
#include "consumer.hpp"
#include "producer.hpp"

using namespace spmc;

namespace {

constexpr u64 kSizes[] = {0, 8, 64, 200, 1024, 4096};

u64 size_of(u64 seq) { return kSizes[seq % 6]; }

void produce(const std::shared_ptr<Segment>& segment, u64 packets) {
  // Ordinary copies: the sanitizer sees memcpy, but not streaming stores.
  Producer producer(segment, 0, {~0ULL, 256 << 10});
  u64 buffer[4096 / 8];
  for (u64 seq = 0; seq < packets;) {
    Refusal refusal;
    u8* to = producer.reserve(size_of(seq), refusal);
    if (to == nullptr) {
      std::this_thread::yield();
      continue;
    }
    for (u64& word : buffer) word = seq;
    producer.copy(to, reinterpret_cast<u8*>(buffer), size_of(seq));
    producer.queue(size_of(seq), 0);
    if (++seq % 3 == 0) producer.commit();  // batches, too
  }
  producer.commit();
  segment->finish();
}

void consume(const std::shared_ptr<Segment>& segment, const GroupInfo& group, u64& got, u64& torn) {
  Consumer consumer(segment, group, 1000, 0);
  std::vector<Claim> claims;
  for (u64 round = 0;; ++round) {
    claims.clear();
    if (consumer.claim(claims, 1 + round % 40) == 0) {
      if (!consumer.wait(monotonic_ns() + 10'000'000) && consumer.ended()) return;
      continue;
    }
    for (const Claim& claim : claims) {
      if (claim.nbytes != size_of(claim.seq)) ++torn;
      for (u64 at = 0; at < claim.nbytes; at += 8) {
        u64 word;
        std::memcpy(&word, claim.frame + kPacketHeaderBytes + at, 8);
        if (word != claim.seq) ++torn;
      }
    }
    if (group.at_least_once && round % 16 == 5) consumer.give_back(claims);
    else got += consumer.release(claims);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const u64 packets = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1'000'000;
  SegmentRequest request;
  request.slots = 256;
  request.arena_bytes = 1 << 20;
  request.max_payload = 1 << 16;
  const auto segment = Segment::create(request);
  Tables tables(*segment);
  const GroupInfo groups[] = {tables.add_group("once", false, false, nullptr),
                              tables.add_group("again", true, true, nullptr)};
  u64 got[4] = {}, torn[4] = {};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 4; ++i)
    threads.emplace_back([&, i] { consume(segment, groups[i / 2], got[i], torn[i]); });
  threads.emplace_back([&] { produce(segment, packets); });
  for (std::thread& thread : threads) thread.join();

  const Account account = read_account(*segment);
  const bool good = account.accepted == packets && got[0] + got[1] == packets &&
                    got[2] + got[3] + account.groups[1].dead == packets &&
                    torn[0] + torn[1] + torn[2] + torn[3] == 0 &&
                    account.groups[0].delivered == packets && account.groups[1].ready == 0;
  std::printf("  %llu packets, 2 groups x 2 members, %llu redelivered, %llu torn: %s\n",
              static_cast<unsigned long long>(packets),
              static_cast<unsigned long long>(account.groups[1].again),
              static_cast<unsigned long long>(torn[0] + torn[1] + torn[2] + torn[3]),
              good ? "all accounted for" : "WRONG");
  return good ? 0 : 1;
}
