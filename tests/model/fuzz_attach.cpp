// The attach path and everything that reads the tables, fed with damaged segments. Built with
// -fsanitize=fuzzer it is a libFuzzer target; with FUZZ_MAIN it mutates by itself from a seed.
#include <fcntl.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "account.hpp"
#include "consumer.hpp"

using namespace spmc;

namespace {

// A valid small segment, as bytes, that the fuzzer's input is laid over.
const std::vector<u8>& good_segment() {
  static const std::vector<u8> bytes = [] {
    SegmentRequest request;
    request.slots = 16;
    request.arena_bytes = 4 * kPage;
    request.max_payload = kPage;
    const auto segment = Segment::create(request);
    Tables tables(*segment);
    tables.intern("identity");
    tables.add_group("train", true, false, nullptr);
    std::vector<u8> copy(segment->geometry().segment_bytes);
    std::memcpy(copy.data(), segment->bytes(0), copy.size());
    return copy;
  }();
  return bytes;
}

// Input: any number of (offset: 4 bytes, value: 8 bytes) patches.
void attach_patched(const u8* data, std::size_t size) {
  const std::vector<u8>& good = good_segment();
  const int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(good.size())) != 0) std::abort();
  if (pwrite(fd, good.data(), good.size(), 0) < 0) std::abort();
  for (; size >= 12; data += 12, size -= 12) {
    u32 offset;
    std::memcpy(&offset, data, 4);
    // Mostly where something is: the header, the tables' heads and shard 0.
    const u64 span = (offset & 1) != 0 ? good.size() : 16384;
    const u64 at = offset / 2 % (span / 8) * 8;
    if (pwrite(fd, data + 4, 8, static_cast<off_t>(at)) < 0) std::abort();
  }
  fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  try {
    const auto segment = Segment::attach_fd(fd);
    read_account(*segment);
    Tables tables(*segment);
    for (u64 id = 0; id < tables.name_count(); ++id) tables.name_of(id);
    store(segment->word(kHdrTableLock), 0);  // a lock held by a live stranger only waits
    if (const auto group = tables.find_group("train")) {
      Consumer consumer(segment, *group, 0, 0);
      std::vector<Claim> claims;
      consumer.claim(claims, 100);
      u64 sum = 0;
      for (const Claim& claim : claims)
        if (claim.frame != nullptr)
          for (u64 i = 0; i < claim.nbytes; i += 64) sum += claim.frame[kPacketHeaderBytes + i];
      if (sum == 0xdeadbeef) std::puts("");
      consumer.ended();
      consumer.give_back(claims);
    }
  } catch (const Error&) {
  }
  close(fd);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  attach_patched(data, size);
  return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::atol(argv[1]) : 20000;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const u64 edges[] = {0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 1ULL << 40, 1ULL << 63, ~0ULL};
  for (long round = 0; round < rounds; ++round) {
    u8 input[12 * 8];
    const std::size_t patches = 1 + random() % 8;
    for (std::size_t i = 0; i < patches; ++i) {
      const u32 offset = static_cast<u32>(random());
      const u64 value = random() % 2 != 0 ? edges[random() % 8] : random();
      std::memcpy(input + i * 12, &offset, 4);
      std::memcpy(input + i * 12 + 4, &value, 8);
    }
    attach_patched(input, patches * 12);
  }
  std::printf("  %ld damaged segments: no crash\n", rounds);
}
#endif
