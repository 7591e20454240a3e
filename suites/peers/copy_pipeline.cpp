// The reference of the bus comparison: two processes, one memcpy in, one sum out, over one arena.
//
//   copy_pipeline BYTES PACKETS cached|streaming WINDOW_BYTES POOL_BYTES CPU CPU  -> GB/s
//   copy_pipeline ping CPU CPU                              -> one-way cache-line time in ns
//
// WINDOW_BYTES of the arena are in use: the writer waits where they are full. Payloads rotate through
// POOL_BYTES of random sources, as the contenders' do. CPU: where writer and reader run; -1: anywhere.
#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Cursor = std::atomic<std::uint64_t>;
constexpr std::uint64_t kReady = ~0ULL;  // before the start

struct Cpus {
  int writer, reader;
};

void pin(int cpu) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  sched_setaffinity(0, sizeof set, &set);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::uint64_t sum(const std::uint64_t* words, std::size_t count) {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) total += words[i];
  return total;
}

void stream(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
#ifdef __AVX512F__
  for (std::size_t i = 0; i < bytes; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#else
  for (std::size_t i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
  _mm_sfence();
}

std::uint8_t* shared(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) std::exit(1);
  return static_cast<std::uint8_t*>(memory);
}

int ping(Cpus cpus) {
  constexpr std::uint64_t rounds = 10'000;
  auto* word = new (shared(4096)) Cursor(0);
  const pid_t child = fork();
  if (child == 0) {
    pin(cpus.reader);
    for (std::uint64_t i = 0; i < rounds; ++i) {
      while (word->load() != 2 * i + 1) _mm_pause();
      word->store(2 * i + 2);
    }
    _exit(0);
  }
  pin(cpus.writer);
  word->store(1);
  while (word->load() != 2) _mm_pause();  // the child runs
  const auto start = Clock::now();
  for (std::uint64_t i = 1; i < rounds; ++i) {
    word->store(2 * i + 1);
    while (word->load() != 2 * i + 2) _mm_pause();
  }
  std::printf("%.0f\n", seconds_since(start) / (rounds - 1) / 2 * 1e9);
  waitpid(child, nullptr, 0);
  return 0;
}

int pipeline(std::size_t bytes, std::uint64_t packets, bool streaming, std::size_t window,
             std::size_t pool, Cpus cpus) {
  const std::uint64_t slots = std::clamp<std::uint64_t>(window / bytes, 2, 4096);
  std::uint8_t* control = shared(8192);
  auto* written = new (control) Cursor(kReady);
  auto* read = new (control + 4096) Cursor(0);
  std::uint8_t* arena = shared(slots * bytes);
  const std::uint64_t sources = std::max<std::uint64_t>(2, pool / bytes);
  std::vector<std::uint64_t> random(sources * bytes / 8);
  std::uint64_t state = 88172645463325252ULL;
  for (auto& word : random) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    word = state;
  }
  const auto* source = reinterpret_cast<const std::uint8_t*>(random.data());
  const pid_t child = fork();
  if (child == 0) {
    pin(cpus.reader);
    // The page tables of this process first: that is no part of moving data.
    volatile std::uint64_t total = sum(reinterpret_cast<std::uint64_t*>(arena), slots * bytes / 8);
    read->store(kReady, std::memory_order_release);
    while (written->load(std::memory_order_acquire) == kReady) _mm_pause();
    for (std::uint64_t next = 0; next < packets;) {
      const std::uint64_t until = written->load(std::memory_order_acquire);
      if (until == next) _mm_pause();
      for (; next < until; ++next) {
        const auto* slot = reinterpret_cast<std::uint64_t*>(arena + next % slots * bytes);
        total = total + sum(slot, bytes / 8);
        read->store(next + 1, std::memory_order_release);
      }
    }
    _exit(0);
  }
  pin(cpus.writer);
  while (read->load(std::memory_order_acquire) != kReady) usleep(100);
  read->store(0);
  const auto start = Clock::now();
  written->store(0, std::memory_order_release);
  for (std::uint64_t next = 0; next < packets; ++next) {
    while (next - read->load(std::memory_order_acquire) >= slots) _mm_pause();
    std::uint8_t* slot = arena + next % slots * bytes;
    const std::uint8_t* from = source + next % sources * bytes;
    if (streaming)
      stream(slot, from, bytes);
    else
      std::memcpy(slot, from, bytes);
    written->store(next + 1, std::memory_order_release);
  }
  while (read->load(std::memory_order_acquire) != packets) _mm_pause();
  std::printf("%.3f\n", static_cast<double>(bytes) * packets / seconds_since(start) / 1e9);
  waitpid(child, nullptr, 0);
  return 0;
}

std::size_t number(const char* text) { return std::strtoull(text, nullptr, 10); }

}  // namespace

int main(int count, char** arguments) {
  if (count == 4 && std::string_view(arguments[1]) == "ping")
    return ping({std::atoi(arguments[2]), std::atoi(arguments[3])});
  if (count != 8) {
    std::fprintf(stderr,
                 "usage: copy_pipeline BYTES PACKETS cached|streaming WINDOW_BYTES POOL_BYTES CPU CPU\n"
                 "       copy_pipeline ping CPU CPU\n");
    return 2;
  }
  return pipeline(number(arguments[1]), number(arguments[2]),
                  std::string_view(arguments[3]) == "streaming", number(arguments[4]),
                  number(arguments[5]), {std::atoi(arguments[6]), std::atoi(arguments[7])});
}
