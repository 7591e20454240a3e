"""The producer's side: one copy of the payload, one short lock, no waiting."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from asys_bench.backends.mp_queue.arena import NO_ROOM, Arena
from asys_bench.backends.mp_queue.wire import padded
from asys_bench.backends.ring_client import forks
from asys_bench.contracts.bus import BusError, BusProducer, DropReason, Payload, Reservation
from asys_bench.contracts.packet import (
    HEADER_BYTES,
    PacketError,
    PacketMeta,
    checksum,
    pack_header_into,
    tensor_bytes,
)

_POLL_S = 0.05
_NUMPY_COPY_BYTES = 1 << 20


class Ledger(Protocol):
    """Where offers are booked: the broker, or its far end in another process."""

    @property
    def finished(self) -> bool: ...

    def accept(
        self, hook_id: int, shard: int, offset: int, size: int, nbytes: int
    ) -> bool | DropReason:
        """See `Broker.accept`."""

    def refuse(self, reason: DropReason, count: int = 1) -> None:
        """Count offered packets as dropped."""

    def catch_up(self, timeout_s: float = 0.0) -> None:
        """Learn what was settled meanwhile; wait for it, at most `timeout_s`."""


class QueueProducer(BusProducer):
    """The single writer of one shard."""

    def __init__(
        self,
        ledger: Ledger,
        arena: Arena,
        wake: Callable[[], None],
        shard: int,
        source: int,
        *,
        with_checksum: bool,
        max_payload_bytes: int,
    ) -> None:
        self.shard = shard
        self._ledger = ledger
        self._wake = wake
        self._source = source
        self._with_checksum = with_checksum
        self.max_payload_bytes = max_payload_bytes
        self._seq = 0
        self._arena = arena
        self._reserved = False
        self._refusal: DropReason | None = None
        self._generation = forks.generation

    @property
    def last_refusal(self) -> DropReason | None:
        return self._refusal

    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        return self._offer(meta, payload, None)

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        return self._offer(meta, payload, timeout_s)

    def reserve(self, nbytes: int) -> Reservation | None:
        self._check_owner()
        if self._reserved:
            raise BusError("a reservation is open; commit or abort it first")
        size = padded(HEADER_BYTES + nbytes)
        offset = self._place(size)
        refusal = self._limits(nbytes) or (DropReason.FULL if offset == NO_ROOM else None)
        if refusal is not None:
            self._refuse(refusal)
            return None
        self._reserved = True
        return QueueReservation(self, self._arena.view, offset, nbytes)

    def close_reservation(self, meta: PacketMeta | None, offset: int, nbytes: int) -> bool:
        """Publish the reserved frame at `offset`, or (`meta` None) forget it."""
        if meta is None:
            self._reserved = False
            return False
        self._check_owner()
        if self._ledger.finished:
            self._reserved = False
            return self._refuse(DropReason.CLOSED)
        self._pack(offset, meta, nbytes)
        self._reserved = False
        return self._accept(meta, offset, nbytes)

    def _offer(self, meta: PacketMeta, payload: Payload, timeout_s: float | None) -> bool:
        self._check_owner()
        if self._reserved:
            raise BusError("a reservation is open; commit or abort it before pushing")
        if type(payload) is not bytes:
            payload = _flat(payload)
        nbytes = len(payload)
        refusal = self._limits(nbytes)
        if refusal is not None:
            return self._refuse(refusal)
        size = padded(HEADER_BYTES + nbytes)
        offset = self._place(size)
        if offset == NO_ROOM:
            if timeout_s is None:
                return self._refuse(DropReason.FULL)
            offset = self._wait_for_room(size, timeout_s)
            if offset == NO_ROOM:
                closed = self._ledger.finished
                return self._refuse(DropReason.CLOSED if closed else DropReason.TIMEOUT)
        try:
            self._copy(payload, offset + HEADER_BYTES, nbytes)
            self._pack(offset, meta, nbytes)
        except (ValueError, AttributeError) as error:
            if self._ledger.finished and not isinstance(error, PacketError):
                return self._refuse(DropReason.CLOSED)  # unmapped by another thread's close()
            raise
        return self._accept(meta, offset, nbytes)

    def _copy(self, payload: bytes | bytearray | memoryview, at: int, nbytes: int) -> None:
        if nbytes < _NUMPY_COPY_BYTES:
            self._arena.view[at : at + nbytes] = payload
        else:  # numpy lets other threads run meanwhile
            self._arena.array[at : at + nbytes] = np.frombuffer(payload, np.uint8)

    def _accept(self, meta: PacketMeta, offset: int, nbytes: int) -> bool:
        size = padded(HEADER_BYTES + nbytes)
        wake = self._ledger.accept(meta.hook_id, self.shard, offset, size, nbytes)
        if wake is not False:
            if wake is not True:
                return self._refuse(wake)
            self._wake()
        self._seq += 1
        self._refusal = None
        return True

    def _pack(self, offset: int, meta: PacketMeta, nbytes: int) -> None:
        view = self._arena.view
        at = offset + HEADER_BYTES
        crc = checksum(view[at : at + nbytes]) if self._with_checksum else None
        pack_header_into(
            view, offset, meta, seq=self._seq, shard=self.shard, source=self._source,
            payload_bytes=nbytes, crc=crc,
        )  # fmt: skip

    def _limits(self, nbytes: int) -> DropReason | None:
        if self._ledger.finished:
            return DropReason.CLOSED
        return DropReason.TOO_LARGE if nbytes > self.max_payload_bytes else None

    def _refuse(self, reason: DropReason) -> bool:
        self._ledger.refuse(reason)
        self._refusal = reason
        return False

    def _place(self, size: int) -> int:
        offset = self._arena.place(size)
        if offset == NO_ROOM:
            self._ledger.catch_up()
            offset = self._arena.place(size)
        return offset

    def _wait_for_room(self, size: int, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while True:
            offset = self._arena.place(size)
            left_s = deadline - time.monotonic()
            if offset != NO_ROOM or left_s <= 0 or self._ledger.finished:
                return offset
            self._ledger.catch_up(min(left_s, _POLL_S))

    def _check_owner(self) -> None:
        if forks.generation != self._generation:
            raise BusError("a forked child cannot push on its parent's bus; only its owner can")


class QueueReservation(Reservation):
    """Room in the arena to encode into; `commit` queues it without a copy."""

    def __init__(
        self, producer: QueueProducer, arena: memoryview, offset: int, nbytes: int
    ) -> None:
        self._producer = producer
        self._offset = offset
        self._nbytes = nbytes
        self._open = True
        self.view = arena[offset + HEADER_BYTES : offset + HEADER_BYTES + nbytes]

    def commit(self, meta: PacketMeta, nbytes: int | None = None) -> bool:
        if not self._open:
            raise BusError("this reservation was committed or aborted already")
        count = self._nbytes if nbytes is None else nbytes
        if not 0 <= count <= self._nbytes:
            raise BusError(f"cannot commit {count} of {self._nbytes} reserved bytes")
        accepted = self._producer.close_reservation(meta, self._offset, count)
        self._end()
        return accepted

    def abort(self) -> None:
        if self._open:
            self._producer.close_reservation(None, self._offset, 0)
            self._end()

    def _end(self) -> None:
        self._open = False
        with contextlib.suppress(BufferError):  # a caller's own view of it may live on
            self.view.release()


def _flat(payload: Payload) -> bytes | bytearray | memoryview:
    """The payload as flat bytes, zero-copy. Raises PacketError when it is not contiguous."""
    if isinstance(payload, torch.Tensor):
        return tensor_bytes(payload)
    if isinstance(payload, bytes | bytearray):
        return payload
    try:
        if isinstance(payload, memoryview):
            return payload.cast("B") if payload.nbytes else memoryview(b"")
        if not payload.flags.c_contiguous:
            raise PacketError(f"the array is not C-contiguous: strides {payload.strides}")
        try:
            return payload.data.cast("B")
        except (TypeError, ValueError):  # of half floats, or of none
            return payload.reshape(-1).view(np.uint8).data
    except (TypeError, ValueError) as error:
        raise PacketError(f"the payload is not one contiguous buffer: {error}") from error
