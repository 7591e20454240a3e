// Copies and checksums of copy.cpp against plain ones, at every size and offset that their loops tell apart.
#include <cstdio>
#include <cstring>
#include <iterator>
#include <vector>

#include "copy.hpp"

using namespace spmc;

namespace {

constexpr u64 kMost = 700, kOffsets = 17;
// Around one and two blocks of the pieces that are copied side by side.
constexpr u64 kBlock = 256 << 10, kLong = 2 * kBlock + 321;
constexpr u64 kLongs[] = {kBlock - 64, kBlock, kBlock + 64, kBlock + 321, 2 * kBlock - 1, kLong};

// CRC-32C bit by bit (RFC 3720, appendix B.4).
u32 plain_crc(const u8* data, u64 bytes) {
  u32 crc = 0xFFFFFFFF;
  for (u64 i = 0; i < bytes; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
  }
  return ~crc;
}

alignas(64) u8 target[kLong + 64];

// The bytes are there, and none beside them was touched. Targets are 64-byte aligned, as in the ring.
bool copies(void (*copy)(u8*, const u8*, u64), const u8* from, u64 bytes) {
  std::memset(target, 0xA5, bytes + 64);
  copy(target, from, bytes);
  for (u64 i = bytes; i < bytes + 64; ++i)
    if (target[i] != 0xA5) return false;
  return std::memcmp(target, from, bytes) == 0;
}

}  // namespace

int main() {
  std::vector<u8> data(kLong + kOffsets);
  u32 state = 1;
  for (u8& byte : data) byte = static_cast<u8>((state = state * 1664525u + 1013904223u) >> 24);
  unsigned wrong = crc32c(reinterpret_cast<const u8*>("123456789"), 9) != 0xE3069283u;
  for (u64 offset = 0; offset < kOffsets; ++offset)
    for (u64 bytes = 0; bytes <= kMost; ++bytes) {
      const u8* from = data.data() + offset;
      wrong += !copies(copy_cached, from, bytes) + !copies(copy_streaming, from, bytes) +
               (crc32c(from, bytes) != plain_crc(from, bytes));
    }
  for (u64 offset = 0; offset < kOffsets; ++offset)
    for (const u64 bytes : kLongs) wrong += !copies(copy_streaming, data.data() + offset, bytes);
  const u64 checks = 1 + 3 * kOffsets * (kMost + 1) + kOffsets * std::size(kLongs);
  std::printf("  %u wrong of %u\n", wrong, static_cast<unsigned>(checks));
  return wrong == 0 ? 0 : 1;
}
