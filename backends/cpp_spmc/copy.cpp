#include "copy.hpp"

#include <time.h>

#include <array>
#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define SPMC_X86 1
// Of the two only clang tells the CRC instructions from the rest of SSE4.2.
#if defined(__clang__)
#define SPMC_CRC __attribute__((target("sse4.2,crc32")))
#else
#define SPMC_CRC __attribute__((target("sse4.2")))
#endif
#endif

namespace spmc {

void copy_cached(u8* to, const u8* from, u64 bytes) { std::memcpy(to, from, bytes); }

void relax() {
#ifdef SPMC_X86
  _mm_pause();
#endif
}

namespace {
u64 now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<u64>(time.tv_sec) * 1'000'000'000ULL + static_cast<u64>(time.tv_nsec);
}
u64 timed_load(u64& word) {
#ifdef SPMC_X86
  _mm_lfence();
  const u64 start = __rdtsc();
  _mm_lfence();
  std::atomic_ref<u64>(word).load(std::memory_order_relaxed);
  _mm_lfence();
  return __rdtsc() - start;
#else
  const u64 start = now_ns();
  std::atomic_ref<u64>(word).load(std::memory_order_acquire);
  return now_ns() - start;
#endif
}
}  // namespace

u64 ticks() {
#ifdef SPMC_X86
  return __rdtsc();
#else
  return now_ns();
#endif
}

u64 ticks_in(u64 ns) {
  static const u64 first_ticks = ticks(), first_ns = now_ns();
  constexpr u64 kUsual = 3, kLongEnoughNs = 1'000'000;
  const u64 passed_ticks = ticks() - first_ticks, passed_ns = now_ns() - first_ns;
  if (passed_ns < kLongEnoughNs) return ns * kUsual;
  return static_cast<u64>(static_cast<double>(ns) * static_cast<double>(passed_ticks) /
                          static_cast<double>(passed_ns));
}

u64 ticks_to_load(u64& word) {
  const u64 first = timed_load(word), again = timed_load(word);
  return first > again ? first - again : 0;
}

#ifdef SPMC_X86
namespace {

// Four lines.
__attribute__((target("avx512f"))) inline void stream_quad_512(u8* to, const u8* from) {
  const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + 64);
  const __m512i c = _mm512_loadu_si512(from + 128), d = _mm512_loadu_si512(from + 192);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), a);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 64), b);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 128), c);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 192), d);
}
__attribute__((target("avx2"))) inline void stream_quad_256(u8* to, const u8* from) {
  for (int line = 0; line < 4; ++line, to += 64, from += 64) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), b);
  }
}

void stream_128(u8* to, const u8* from, u64 lines) {
  for (; lines > 0; --lines)
    for (int i = 0; i < 4; ++i, to += 16, from += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

__attribute__((target("avx512f"))) void stream_512(u8* to, const u8* from, u64 lines) {
  for (; lines >= 4; lines -= 4, to += 256, from += 256) {
    _mm_prefetch(reinterpret_cast<const char*>(from + 1024), _MM_HINT_T0);
    stream_quad_512(to, from);
  }
  stream_128(to, from, lines);
}

__attribute__((target("avx2"))) void stream_256(u8* to, const u8* from, u64 lines) {
  for (; lines >= 4; lines -= 4, to += 256, from += 256) stream_quad_256(to, from);
  stream_128(to, from, lines);
}

// Four pieces side by side keep more of the memory's banks, and of the core's own prefetches, at work.
// What is left after whole blocks of four is copied in a row.
constexpr u64 kPieces = 4, kPieceBytes = 64 << 10, kBlockBytes = kPieces * kPieceBytes;

__attribute__((target("avx512f"))) void spread_512(u8* to, const u8* from, u64 lines) {
  for (; lines >= kBlockBytes / 64; lines -= kBlockBytes / 64, to += kBlockBytes, from += kBlockBytes)
    for (u64 at = 0; at < kPieceBytes; at += 256)
      for (u64 piece = at; piece < kBlockBytes; piece += kPieceBytes)
        stream_quad_512(to + piece, from + piece);
  for (; lines >= 4; lines -= 4, to += 256, from += 256) stream_quad_512(to, from);
  stream_128(to, from, lines);
}

__attribute__((target("avx2"))) void spread_256(u8* to, const u8* from, u64 lines) {
  for (; lines >= kBlockBytes / 64; lines -= kBlockBytes / 64, to += kBlockBytes, from += kBlockBytes)
    for (u64 at = 0; at < kPieceBytes; at += 256)
      for (u64 piece = at; piece < kBlockBytes; piece += kPieceBytes)
        stream_quad_256(to + piece, from + piece);
  stream_256(to, from, lines);
}

SPMC_CRC u32 crc_sse42(const u8* data, u64 bytes) {
  u64 crc = 0xFFFFFFFF;
  for (; bytes >= 8; bytes -= 8, data += 8) {
    u64 word;
    std::memcpy(&word, data, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; bytes > 0; --bytes, ++data) crc = _mm_crc32_u8(static_cast<u32>(crc), *data);
  return static_cast<u32>(crc) ^ 0xFFFFFFFF;
}

using Stream = void (*)(u8*, const u8*, u64);
// Which is quicker was measured of each maker's processors (docs/design.md).
Stream stream_of_this_cpu() {
  const bool amd = __builtin_cpu_is("amd");
  if (__builtin_cpu_supports("avx512f")) return amd ? spread_512 : stream_512;
  if (__builtin_cpu_supports("avx2")) return amd ? spread_256 : stream_256;
  return stream_128;
}
const Stream kStream = stream_of_this_cpu();
const bool kHasCrc = __builtin_cpu_supports("sse4.2");

}  // namespace

void copy_streaming(u8* to, const u8* from, u64 bytes) {
  const u64 whole = bytes & ~63ULL;
  kStream(to, from, whole / 64);
  std::memcpy(to + whole, from + whole, bytes - whole);
  _mm_sfence();
}
#else
void copy_streaming(u8* to, const u8* from, u64 bytes) { std::memcpy(to, from, bytes); }
#endif

namespace {
u32 crc_table(const u8* data, u64 bytes) {
  static const auto table = [] {
    std::array<u32, 256> t{};
    for (u32 i = 0; i < 256; ++i) {
      u32 crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
      t[i] = crc;
    }
    return t;
  }();
  u32 crc = 0xFFFFFFFF;
  for (; bytes > 0; --bytes, ++data) crc = (crc >> 8) ^ table[(crc ^ *data) & 0xFF];
  return crc ^ 0xFFFFFFFF;
}
}  // namespace

u32 crc32c(const u8* data, u64 bytes) {
#ifdef SPMC_X86
  if (kHasCrc) return crc_sse42(data, bytes);
#endif
  return crc_table(data, bytes);
}

}  // namespace spmc
