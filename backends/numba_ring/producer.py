"""The writer of one shard, as Python holds it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.backends.numba_ring.addresses import BytesAddress, locate
from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core import producer_core
from asys_bench.backends.numba_ring.core.producer_core import ACCEPTED, FULL, TIMEOUT
from asys_bench.backends.numba_ring.core.producer_state import (
    P_ARENA,
    P_ARENA_BYTES,
    P_COMMITTED,
    P_HEADER,
    P_INITIAL_SEQ,
    P_MAX_PAYLOAD,
    P_NEXT,
    P_RUN_COUNT,
    P_RUNS,
    P_SHARD,
    P_SLOTS,
    P_STARTS,
    P_STATE_BYTES,
    P_STREAMING,
    P_TAIL,
    P_WINDOW,
)
from asys_bench.backends.numba_ring.core.words import signed
from asys_bench.backends.numba_ring.segment import Segment
from asys_bench.backends.numba_ring.tables import Tables
from asys_bench.backends.ring_client import forks
from asys_bench.backends.ring_client.client import REFUSALS, ShardWriter
from asys_bench.backends.ring_client.options import RingOptions
from asys_bench.contracts.bus import BusError, DropReason, Payload, Reservation
from asys_bench.contracts.packet import (
    HEADER_BYTES,
    PacketError,
    PacketMeta,
    checksum,
    pack_header_into,
)

UNLOCK_BYTES = 64 << 10
"""Copies of at least this many bytes release the GIL."""

_push, _push_unlocked = producer_core.push, producer_core.push_unlocked
_ROOM_POLL_S = 50e-6
_DEATH_CHECK_NS = 50_000_000
_STANDSTILL_NS = 1_000_000_000


class RingProducer(ShardWriter):
    """The single writer of one shard."""

    def __init__(
        self, segment: Segment, shard: int, options: RingOptions, source: int | None = None
    ) -> None:
        """Takes the shard. `source`: the rank in its packets; None: the segment's own.

        Raises:
            BusError: no such shard, or it was taken.
        """
        self.shard = shard
        self._arena = segment.take_shard(shard)
        self.pushing = False
        """A call that may have released the GIL is under way."""
        self.reserved = False
        """A reservation is out."""
        self.segment = segment
        self._source = segment.source if source is None else source
        self._checksum = segment.checksum
        self._tables = Tables(segment)
        self._generation = forks.generation
        self._refusal: DropReason | None = None
        self._next_death_check = 0
        self._full_at, self._full_since = -1, 0
        """The oldest slot while the ring is full, and when it was first seen."""
        self._address_of_bytes = BytesAddress()
        geometry = segment.geometry
        self.max_payload_bytes = geometry.max_payload
        self._state = np.zeros(P_STATE_BYTES // 8, np.int64)
        self._starts = np.zeros(geometry.slots, np.int64)
        template = np.zeros(HEADER_BYTES, np.uint8)
        self._template = template.data
        self.template_address = int(template.__array_interface__["data"][0])
        self.state_address = int(self._state.__array_interface__["data"][0])
        first = segment.words.load(segment.shard_address(shard) - segment.base)
        for offset, value in {
            P_HEADER: segment.base,
            P_SHARD: segment.shard_address(shard),
            P_ARENA: int(np.frombuffer(self._arena, np.uint8).__array_interface__["data"][0]),
            P_STARTS: int(self._starts.__array_interface__["data"][0]),
            P_SLOTS: geometry.slots,
            P_ARENA_BYTES: geometry.arena_bytes,
            P_WINDOW: min(options.window_bytes, geometry.arena_bytes),
            P_MAX_PAYLOAD: geometry.max_payload,
            P_STREAMING: options.streaming_threshold_bytes,
            P_INITIAL_SEQ: signed(segment.initial_seq),
            P_NEXT: signed(first),
            P_COMMITTED: signed(first),
            P_TAIL: signed(first),
        }.items():
            self._state[offset // 8] = value

    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        return self._offer(meta, payload, -1.0)

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        return self._offer(meta, payload, max(0.0, timeout_s))

    def reserve(self, nbytes: int) -> Reservation | None:
        self._check()
        if nbytes < 0:
            raise ValueError(f"cannot reserve {nbytes} bytes")
        asked = min(nbytes, 1 << 62)
        offset = producer_core.reserve(self.state_address, asked)
        if offset == -1 - FULL and self._freed_by_the_dead():
            offset = producer_core.reserve(self.state_address, asked)
        if offset < 0:
            self.settle(-1 - offset)
            return None
        self._refusal = None
        self.reserved = True
        return RingReservation(self, self._arena[offset : offset + nbytes])

    def try_push_many(self, meta: PacketMeta, payloads: npt.NDArray[Any] | torch.Tensor) -> int:
        self._check()
        address, total, keep = locate(payloads)
        rows = len(payloads)
        nbytes = total // rows if rows else 0
        crcs, crcs_address = None, 0
        if self.segment.checksum:
            content = memoryview(_content(keep, total))
            crcs = np.array(
                [checksum(content[i * nbytes :][:nbytes]) for i in range(rows)], np.int64
            )
            crcs_address = int(crcs.__array_interface__["data"][0])
        self.write_template(meta, nbytes, None if crcs is None else 0)
        self.pushing = True
        try:
            done, outcome = self._push_rows(address, 0, rows, nbytes, meta.hook_id, crcs_address)
            if outcome == FULL and self._freed_by_the_dead():
                done, outcome = self._push_rows(
                    address, done, rows, nbytes, meta.hook_id, crcs_address
                )
        finally:
            self.pushing = False
        self.settle(outcome)
        return done

    def refusal(self) -> DropReason | None:
        return self._refusal

    def is_pushing(self) -> bool:
        return self.pushing

    def fill_now(self) -> float | None:
        if forks.generation != self._generation:
            raise forks.refuse()
        if self.pushing or self.reserved:
            return None
        slots = producer_core.harvest(self.state_address)
        runs = self._state[P_RUNS // 8 :][: 2 * int(self._state[P_RUN_COUNT // 8])]
        used = int(runs[1::2].sum()) - int(runs[::2].sum())
        return max(slots / self.segment.geometry.slots, used / int(self._state[P_ARENA_BYTES // 8]))

    # For reservations, too.

    def write_template(self, meta: PacketMeta, nbytes: int, crc: int | None) -> None:
        """The header of the next packet; the sequence number is filled in when it is placed."""
        pack_header_into(
            self._template, 0, meta, seq=0, shard=self.shard, source=self._source,
            payload_bytes=nbytes, crc=crc,
        )  # fmt: skip

    def settle(self, outcome: int) -> bool:
        """Remember, and count if it was refused, how an offer ended."""
        if outcome == ACCEPTED:
            self._refusal = None
            return True
        self._refusal = REFUSALS[outcome]
        producer_core.count_refusal(self.state_address, outcome)
        return False

    def _offer(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        if self.pushing or self.reserved or forks.generation != self._generation:
            self._check()
        if type(payload) is bytes:
            address, nbytes, keep = self._address_of_bytes.of(payload), len(payload), payload
        else:
            address, nbytes, keep = locate(payload)  # type: ignore[assignment]
        crc = checksum(_content(keep, nbytes)) if self._checksum else None
        pack_header_into(
            self._template, 0, meta, seq=0, shard=self.shard, source=self._source,
            payload_bytes=nbytes, crc=crc,
        )  # fmt: skip
        self.pushing = True
        try:
            push = _push if nbytes < UNLOCK_BYTES else _push_unlocked
            outcome = push(self.state_address, self.template_address, address, nbytes, meta.hook_id)
            if outcome == FULL:
                outcome = self._push_when_room(address, nbytes, meta.hook_id, timeout_s)
        finally:
            self.pushing = False
        if outcome == ACCEPTED:
            self._refusal = None
            return True
        return self.settle(outcome)

    def _push_when_room(self, address: int, nbytes: int, hook_id: int, timeout_s: float) -> int:
        """The ring is full: look for dead readers, and wait if this is a `push`."""
        deadline = time.monotonic() + timeout_s
        outcome = FULL
        while outcome == FULL:
            if self._freed_by_the_dead():
                outcome = _push_unlocked(
                    self.state_address, self.template_address, address, nbytes, hook_id
                )
            elif time.monotonic() >= deadline:
                return FULL if timeout_s < 0 else TIMEOUT
            else:
                time.sleep(_ROOM_POLL_S)
                outcome = _push_unlocked(
                    self.state_address, self.template_address, address, nbytes, hook_id
                )
        return outcome

    def _push_rows(
        self, address: int, first: int, rows: int, nbytes: int, hook_id: int, crcs: int
    ) -> tuple[int, int]:
        result = producer_core.push_rows(
            self.state_address, self.template_address, address, first, rows, nbytes, hook_id, crcs
        )
        return divmod(result, 8)

    def _freed_by_the_dead(self) -> bool:
        """A dead reader may hold the oldest slot: look, but not at every refusal. True: try again."""
        now = time.monotonic_ns()
        if now < self._next_death_check:
            return False
        self._next_death_check = now + _DEATH_CHECK_NS
        self._tables.reap_dead()
        self._tables.let_go_of_empty_groups()
        self._pass_over_who_stands_still(now)
        return True

    def _pass_over_who_stands_still(self, now: int) -> None:
        """A reader that joined late and may lose packets (`subscribe`) must not hold up the others, not
        when it is stopped (SIGSTOP, a debugger) with the oldest packet in its hands either."""
        tail = int(self._state[P_TAIL // 8])
        if tail != self._full_at:
            self._full_at, self._full_since = tail, now
        if now - self._full_since < _STANDSTILL_NS:
            return
        geometry = self.segment.geometry
        slot = at.SHARDS_OFFSET + self.shard * geometry.shard_stride + at.SH_SLOTS
        slot += (tail & (geometry.slots - 1)) * at.SLOT_STRIDE
        for group in self._tables.groups():
            state = self.segment.words.load(slot + 8 * group.number) & 0xF
            late = group.temporary and not group.at_least_once
            if late and state in (at.STATE_PENDING, at.STATE_CLAIMED):
                self._tables.pass_over(group.number)

    def _check(self) -> None:
        if forks.generation != self._generation:
            raise forks.refuse()
        if self.pushing or self.reserved:
            raise BusError(
                "the producer is in use: by another thread (take one shard per thread), or by a "
                "reservation that was neither committed nor aborted"
            )


class RingReservation(Reservation):
    """Fill `view`, then `commit` or `abort`."""

    def __init__(self, producer: RingProducer, view: memoryview) -> None:
        self.view = view
        self._nbytes = view.nbytes
        self._producer: RingProducer | None = producer
        self._generation = forks.generation

    def commit(self, meta: PacketMeta, nbytes: int | None = None) -> bool:
        producer = self._producer
        if producer is None:
            raise BusError("the reservation was committed or aborted before")
        if forks.generation != self._generation:
            raise forks.refuse()
        size = self._nbytes if nbytes is None else nbytes
        if not 0 <= size <= self._nbytes:
            raise PacketError(f"{self._nbytes} bytes were reserved, {size} cannot be committed")
        crc = None
        if producer.segment.checksum:
            crc = (
                checksum(np.frombuffer(self.view, np.uint8)[:size].data) if size else checksum(b"")
            )
        producer.write_template(meta, size, crc)
        self._close(producer)
        outcome = producer_core.commit(
            producer.state_address, producer.template_address, size, meta.hook_id
        )
        return producer.settle(outcome)

    def abort(self) -> None:
        producer = self._producer
        if producer is not None:
            self._close(producer)
            producer_core.abort(producer.state_address)

    def _close(self, producer: RingProducer) -> None:
        with contextlib.suppress(BufferError):  # an array over it lives: it must not be written now
            self.view.release()
        self._producer = None
        producer.reserved = False


def _content(keep: Any, nbytes: int) -> memoryview | bytes:
    if isinstance(keep, bytes):
        return keep
    if nbytes == 0:
        return b""
    if isinstance(keep, torch.Tensor):
        return keep.detach().reshape(-1).view(torch.uint8).numpy().data
    return memoryview(keep).cast("B")
