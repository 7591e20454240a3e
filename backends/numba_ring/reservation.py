"""A slot of the arena that the caller encodes into."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from asys_bench.backends.numba_ring import forks
from asys_bench.backends.numba_ring.core import producer_core
from asys_bench.contracts.bus import BusError, Reservation
from asys_bench.contracts.packet import PacketError, PacketMeta, checksum

if TYPE_CHECKING:
    from asys_bench.backends.numba_ring.producer import RingProducer


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
