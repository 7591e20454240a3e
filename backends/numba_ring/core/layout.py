"""The shared segment, byte by byte: the same constants as `cpp_spmc/layout.hpp`, which explains them.

A test compares every one of them with the compiled module, and the two backends read each other's
segments. Offsets are in bytes; every field is a little-endian 64-bit word, touched by atomics only.
"""

from __future__ import annotations

from typing import NamedTuple

MAGIC = 0x31434D5053595341  # "ASYSPMC1" little-endian
VERSION = 2

GROUPS = 7
OWNERS = 64
NAMES = 4096
MAX_SHARDS = 1024
MAX_DELIVERIES = 5
NAME_BYTES = 200
GROUP_NAME_BYTES = 120
PAGE = 4096
PACKET_HEADER_BYTES = 128
MAX_SLOTS = 1 << 22
MAX_ARENA_BYTES = 1 << 38
MAX_PAYLOAD_BYTES = 0xFFFFFFFF

# Header words that never change.
HDR_MAGIC = 0
HDR_VERSION = 8
HDR_SEGMENT_BYTES = 16
HDR_SHARDS = 24
HDR_SLOTS = 32
HDR_ARENA_BYTES = 40
HDR_SHARDS_OFFSET = 48
HDR_SHARD_STRIDE = 56
HDR_ARENA_OFFSET = 64
HDR_MAX_PAYLOAD = 72
HDR_SOURCE = 80
HDR_FLAGS = 88  # bit 0: packets carry a checksum
HDR_OWNER_IDENTITY = 96
HDR_INITIAL_SEQ = 104
# Header words that do, a line each.
HDR_STATE = 1024
HDR_GROUP_MASK = 1152  # bit g: group g exists; bit 8 + g: it gets packets
HDR_TABLE_LOCK = 1280
HDR_WAITERS = 1408
HDR_DOORBELL = 1536  # futex on its low half
HDR_NAME_COUNT = 1664

ACTIVE_SHIFT = 8

STATE_LIVE = 1
STATE_FINISHED = 2
STATE_CLOSING = 3

OWNERS_OFFSET = 4096
OWNER_STRIDE = 64
OWN_GROUP = 8
GROUPS_OFFSET = 8192
GROUP_STRIDE = 1024
# bit 0: at_least_once; bit 1: only the hooks in the bitmap; bit 2: made late, let go when empty
GRP_FLAGS = 0
GRP_NAME_LENGTH = 8
GRP_NAME = 16
GRP_HOOKS = 256
NAMES_OFFSET = 16384
NAME_STRIDE = 256
NAM_LENGTH = 0
NAM_TEXT = 8

SHARDS_OFFSET = NAMES_OFFSET + NAMES * NAME_STRIDE
SH_WSEQ = 0
SH_DROPPED = 128  # 4 words: full, timeout, too_large, closed
SH_PUBLISHED = 256  # 2 records: upto, bytes, known mask, missed[7]
SH_PUBLISHED_STRIDE = 128
SH_HARVEST_SELECT = 512
SH_HARVEST = 640  # 2 records: upto, lost[7], dead[7], again[7], left[7]
SH_HARVEST_STRIDE = 256
SH_HINTS = 1152
SH_HINT_STRIDE = 128
SH_PRODUCER = 2048  # identity of the one process that writes this shard, or 0
SH_SLOTS = 4096
SLOT_STRIDE = 64
SLOT_DESCRIPTOR = 56  # (frame offset / 64):32 | payload bytes:32

# States of a group word. From STATE_DELIVERED on they are final.
STATE_PENDING = 1
STATE_CLAIMED = 2
STATE_DELIVERED = 3
STATE_LOST = 4
STATE_DEAD = 5
STATE_MISSED = 6  # never meant for this group
STATE_LEFT = 7  # nobody of its group was there, or went on, when the ring was full

SEQ_MASK = (1 << 40) - 1
OWNER_MASK = 0xFFFF  # index:6 | generation:10
GENERATION_MASK = 0x3FF


class Geometry(NamedTuple):
    """Sizes of one segment; everything but the first four follows from them."""

    shards: int
    slots: int
    arena_bytes: int
    max_payload: int
    shard_stride: int
    arena_offset: int
    segment_bytes: int


def round_up(value: int, step: int) -> int:
    return (value + step - 1) // step * step


def geometry(shards: int, slots: int, arena_bytes: int, max_payload: int) -> Geometry:
    """The one way to get sizes and offsets: nothing of this is ever taken from shared memory."""
    shard_stride = round_up(SH_SLOTS + slots * SLOT_STRIDE, PAGE)
    arena_offset = SHARDS_OFFSET + shards * shard_stride
    segment_bytes = arena_offset + shards * arena_bytes
    return Geometry(
        shards, slots, arena_bytes, max_payload, shard_stride, arena_offset, segment_bytes
    )


def geometry_error(shards: int, slots: int, arena_bytes: int, max_payload: int) -> str | None:
    """Why these numbers cannot describe a segment, or None."""
    if not 1 <= shards <= MAX_SHARDS:
        return f"shards must be 1..{MAX_SHARDS}, not {shards}"
    if not 1 <= slots <= MAX_SLOTS or slots & (slots - 1):
        return f"slots must be a power of two up to {MAX_SLOTS}, not {slots}"
    if not PAGE <= arena_bytes <= MAX_ARENA_BYTES or arena_bytes % PAGE:
        return f"arena bytes must be whole pages up to 256 GiB, not {arena_bytes}"
    frame = PACKET_HEADER_BYTES + round_up(max_payload, 64)
    if max_payload > MAX_PAYLOAD_BYTES or frame > arena_bytes:
        return f"the largest payload ({max_payload}) must be below 4 GiB and fit the arena"
    return None
