"""The first page of a segment: written once by its owner, validated by everybody else."""

from __future__ import annotations

import os
import struct

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.layout import Geometry
from asys_bench.backends.numba_ring.core.words import Words
from asys_bench.backends.ring_client.client import SegmentRequest
from asys_bench.contracts.bus import BusError


def read(fd: int) -> tuple[int, ...]:
    """The header's words, copied."""
    page = os.pread(fd, at.PAGE, 0)
    if len(page) < at.PAGE or os.fstat(fd).st_size < at.SHARDS_OFFSET:
        raise BusError(f"the segment has {os.fstat(fd).st_size} bytes: too few for a bus")
    return struct.unpack(f"<{at.PAGE // 8}Q", page)


def validate(header: tuple[int, ...], file_bytes: int) -> Geometry:
    """The geometry it describes, recomputed; BusError when anything does not add up."""

    def field(offset: int) -> int:
        return header[offset // 8]

    if field(at.HDR_MAGIC) != at.MAGIC:
        raise BusError("the segment is not a ring bus (wrong magic)")
    if field(at.HDR_VERSION) != at.VERSION:
        raise BusError(
            f"the segment has layout version {field(at.HDR_VERSION)}, this build reads {at.VERSION}; "
            "use one version"
        )
    free = (at.HDR_SHARDS, at.HDR_SLOTS, at.HDR_ARENA_BYTES, at.HDR_MAX_PAYLOAD)
    numbers = [field(offset) for offset in free]
    problem = at.geometry_error(*numbers)
    if problem is not None:
        raise BusError(f"the segment's header is damaged: {problem}")
    geometry = at.geometry(*numbers)
    derived = {
        at.HDR_SEGMENT_BYTES: geometry.segment_bytes,
        at.HDR_SHARDS_OFFSET: at.SHARDS_OFFSET,
        at.HDR_SHARD_STRIDE: geometry.shard_stride,
        at.HDR_ARENA_OFFSET: geometry.arena_offset,
    }
    wrong = [offset for offset, value in derived.items() if field(offset) != value]
    if wrong or geometry.segment_bytes != file_bytes:
        raise BusError("the segment's header is damaged: offsets or size do not add up")
    if not at.STATE_LIVE <= field(at.HDR_STATE) <= at.STATE_CLOSING:
        raise BusError(f"the segment's header is damaged: unknown state {field(at.HDR_STATE)}")
    return geometry


def initialise(words: Words, geometry: Geometry, request: SegmentRequest, identity: int) -> None:
    """Write header and shard control blocks of a new (zeroed) segment; the magic comes last."""
    store = words.store
    for offset, value in {
        at.HDR_VERSION: at.VERSION,
        at.HDR_SEGMENT_BYTES: geometry.segment_bytes,
        at.HDR_SHARDS: geometry.shards,
        at.HDR_SLOTS: geometry.slots,
        at.HDR_ARENA_BYTES: geometry.arena_bytes,
        at.HDR_SHARDS_OFFSET: at.SHARDS_OFFSET,
        at.HDR_SHARD_STRIDE: geometry.shard_stride,
        at.HDR_ARENA_OFFSET: geometry.arena_offset,
        at.HDR_MAX_PAYLOAD: geometry.max_payload,
        at.HDR_SOURCE: request.source,
        at.HDR_FLAGS: int(request.checksum),
        at.HDR_OWNER_IDENTITY: identity,
        at.HDR_INITIAL_SEQ: request.initial_seq,
    }.items():
        store(offset, value)
    for number in range(geometry.shards):
        shard = at.SHARDS_OFFSET + number * geometry.shard_stride
        store(shard + at.SH_WSEQ, request.initial_seq)
        for group in range(at.GROUPS):
            hint = shard + at.SH_HINTS + group * at.SH_HINT_STRIDE
            store(hint, request.initial_seq & at.SEQ_MASK)
        for record in range(2):
            store(shard + at.SH_PUBLISHED + record * at.SH_PUBLISHED_STRIDE, request.initial_seq)
            store(shard + at.SH_HARVEST + record * at.SH_HARVEST_STRIDE, request.initial_seq)
    store(at.HDR_STATE, at.STATE_LIVE)
    store(at.HDR_MAGIC, at.MAGIC)
