// The shared segment, byte by byte. Every multi-byte field is a little-endian 64-bit word at an
// 8-byte-aligned offset, touched only through atomics, so that any language with 64-bit atomics can
// implement it (numba_ring does). Nothing here is a pointer, a std:: type or a compiler-laid-out struct.
//
//   0        header: one page. Immutable words first, then one 128-byte line per mutable word.
//   4096     owner table: 64 entries of 64 bytes (entry 0 is never used: owner 0 means "nobody")
//   8192     group table: 7 entries of 512 bytes (an eighth stays empty)
//   12288    name table: 1024 entries of 256 bytes
//   274432   shards: control block and slots of shard 0, 1, ...
//   ...      arenas of shard 0, 1, ...; page aligned; consumers map them read-only
//
// A slot is one 64-byte line: a word per group and the descriptor, so a claim moves one line. The
// 128-byte packet header (contracts/packet.py) lies in the arena right before its payload.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace spmc {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

inline constexpr u64 kMagic = 0x31434d5053595341ULL;  // "ASYSPMC1" little-endian
inline constexpr u64 kLayoutVersion = 2;

inline constexpr unsigned kGroups = 7;
inline constexpr unsigned kOwners = 64;
inline constexpr unsigned kNames = 4096;  // 2,048 hooks, and as many encodings
inline constexpr unsigned kMaxShards = 1024;
inline constexpr unsigned kMaxDeliveries = 5;
inline constexpr unsigned kNameBytes = 200;
inline constexpr unsigned kGroupNameBytes = 120;
inline constexpr u64 kPage = 4096;
inline constexpr u64 kPacketHeaderBytes = 128;
inline constexpr u64 kMaxSlots = 1ULL << 22;
inline constexpr u64 kMaxArenaBytes = 1ULL << 38;
inline constexpr u64 kMaxPayloadBytes = 0xFFFFFFFFULL;

// ---- header words: immutable after creation -----------------------------------------------------
inline constexpr u64 kHdrMagic = 0;
inline constexpr u64 kHdrVersion = 8;
inline constexpr u64 kHdrSegmentBytes = 16;
inline constexpr u64 kHdrShards = 24;
inline constexpr u64 kHdrSlots = 32;
inline constexpr u64 kHdrArenaBytes = 40;
inline constexpr u64 kHdrShardsOffset = 48;
inline constexpr u64 kHdrShardStride = 56;
inline constexpr u64 kHdrArenaOffset = 64;
inline constexpr u64 kHdrMaxPayload = 72;
inline constexpr u64 kHdrSource = 80;
inline constexpr u64 kHdrFlags = 88;        // bit 0: packets carry a checksum
inline constexpr u64 kHdrOwnerIdentity = 96;  // start time:32 | pid:22 | 0:10
inline constexpr u64 kHdrInitialSeq = 104;
// ---- header words: mutable, a line each ---------------------------------------------------------
inline constexpr u64 kHdrState = 1024;      // BusState
inline constexpr u64 kHdrGroupMask = 1152;  // bit g: group g exists; bit 8 + g: it gets packets
inline constexpr u64 kHdrTableLock = 1280;  // identity of who edits the group or name table, or 0
inline constexpr u64 kHdrWaiters = 1408;    // bit i: owner i sleeps, or is about to
inline constexpr u64 kHdrDoorbell = 1536;   // futex on its low half; rises with every ring
inline constexpr u64 kHdrNameCount = 1664;

inline constexpr unsigned kActiveShift = 8;

enum BusState : u64 { kStarting = 0, kLive = 1, kFinished = 2, kClosing = 3 };

// ---- owner table: word 0 is identity|generation (0 pid: free), word 1 the group -----------------
inline constexpr u64 kOwnersOffset = 4096;
inline constexpr u64 kOwnerStride = 64;
// ---- group table --------------------------------------------------------------------------------
inline constexpr u64 kGroupsOffset = 8192;
inline constexpr u64 kGroupStride = 1024;
// bit 0: at_least_once; bit 1: only the hooks in the bitmap; bit 2: made late, let go when empty
inline constexpr u64 kGrpFlags = 0;
inline constexpr u64 kGrpNameLength = 8;
inline constexpr u64 kGrpName = 16;
inline constexpr u64 kGrpHooks = 256;  // kNames bits
// ---- name table ---------------------------------------------------------------------------------
inline constexpr u64 kNamesOffset = 16384;
inline constexpr u64 kNameStride = 256;
inline constexpr u64 kNamLength = 0;
inline constexpr u64 kNamText = 8;
// ---- shard control block ------------------------------------------------------------------------
inline constexpr u64 kShardsOffset = kNamesOffset + kNames * kNameStride;
inline constexpr u64 kShWseq = 0;           // next sequence number; the only commit point
inline constexpr u64 kShDropped = 128;      // 4 words: full, timeout, too_large, closed
inline constexpr u64 kShPublished = 256;    // 2 records of 128: upto, bytes, known mask, missed[7]
inline constexpr u64 kShPublishedStride = 128;
inline constexpr u64 kShHarvestSelect = 512;  // which harvest record is valid: 0 or 1
inline constexpr u64 kShHarvest = 640;        // 2 records of 256: upto, lost, dead, again, left (7 words each)
inline constexpr u64 kShHarvestStride = 256;
inline constexpr u64 kShHints = 1152;  // 7 lines of 128: epoch:24 | seq:40
inline constexpr u64 kShHintStride = 128;
inline constexpr u64 kShProducer = 2048;  // identity of the one process that writes this shard, or 0
inline constexpr u64 kShSlots = 4096;
inline constexpr u64 kSlotStride = 64;
inline constexpr u64 kSlotDescriptor = 56;  // (frame offset / 64):32 | payload bytes:32

static_assert(std::endian::native == std::endian::little,
              "segment words are little-endian: another byte order needs swaps at every access");
static_assert(kGroups * 8 + 8 == kSlotStride,
              "group words and descriptor share one line: a claim then moves a single line");
static_assert(kOwnersOffset + kOwners * kOwnerStride <= kGroupsOffset, "owner table overlaps groups");
static_assert(kGroupsOffset + kGroups * kGroupStride <= kNamesOffset, "group table overlaps names");
static_assert(kGrpHooks + kNames / 8 <= kGroupStride, "a group's hook bitmap must cover every name");
static_assert(kGrpName + kGroupNameBytes <= kGrpHooks, "a group's name must not reach its bitmap");
static_assert(kNamText + kNameBytes <= kNameStride, "a name must fit its table entry");
static_assert(kShHints + kGroups * kShHintStride <= kShProducer, "hints overlap the producer");
static_assert(kShProducer + 8 <= kShSlots, "the producer's identity overlaps the slots");
static_assert(kShHarvest + 2 * kShHarvestStride <= kShHints, "harvest records overlap the hints");
static_assert(8 + 4 * kGroups * 8 <= kShHarvestStride, "a harvest record holds four counters per group");
static_assert(24 + kGroups * 8 <= kShPublishedStride, "a publish record holds one counter per group");
static_assert(kOwners <= 64, "sleeping owners are bits of one 64-bit word");
static_assert(kShardsOffset % kPage == 0, "shards start on a page: mappings are page-granular");

struct Geometry {
  u64 shards, slots, arena_bytes, max_payload;
  u64 shard_stride, arena_offset, segment_bytes;
};

constexpr u64 round_up(u64 value, u64 step) { return (value + step - 1) / step * step; }
constexpr u64 frame_bytes(u64 payload) { return kPacketHeaderBytes + round_up(payload, 64); }

// The one way to get sizes and offsets. The attach path recomputes them from the three free numbers
// and refuses a header that says anything else, so no offset is ever taken from shared memory.
constexpr Geometry geometry(u64 shards, u64 slots, u64 arena_bytes, u64 max_payload) {
  Geometry g{shards, slots, arena_bytes, max_payload, 0, 0, 0};
  g.shard_stride = round_up(kShSlots + slots * kSlotStride, kPage);
  g.arena_offset = kShardsOffset + shards * g.shard_stride;
  g.segment_bytes = g.arena_offset + shards * arena_bytes;
  return g;
}

// Why these numbers cannot describe a segment, or nullptr.
constexpr const char* geometry_error(u64 shards, u64 slots, u64 arena_bytes, u64 max_payload) {
  if (shards < 1 || shards > kMaxShards) return "shards must be 1..1024";
  if (slots < 1 || slots > kMaxSlots || !std::has_single_bit(slots))
    return "slots must be a power of two up to 4194304";
  if (arena_bytes < kPage || arena_bytes > kMaxArenaBytes || arena_bytes % kPage != 0)
    return "arena bytes must be whole pages up to 256 GiB";
  if (max_payload > kMaxPayloadBytes || frame_bytes(max_payload) > arena_bytes)
    return "the largest payload must be below 4 GiB and fit the arena";
  return nullptr;
}

}  // namespace spmc
