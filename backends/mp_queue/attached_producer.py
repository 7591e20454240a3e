"""The writer of one shard in a process that does not own the bus."""

from __future__ import annotations

from asys_bench.backends.mp_queue.arena import MAX_PAYLOAD_BYTES
from asys_bench.backends.mp_queue.far_ledger import FarLedger
from asys_bench.backends.mp_queue.producer import QueueProducer
from asys_bench.contracts.bus import AttachedProducer


class QueueAttachedProducer(QueueProducer, AttachedProducer):
    """`QueueProducer` over the far end of the books."""

    def __init__(self, ledger: FarLedger, shard: int, source: int) -> None:
        self._far = ledger
        super().__init__(
            ledger,
            ledger.arena,
            _nobody,
            shard,
            source,
            with_checksum=ledger.checksum,
            max_payload_bytes=min(MAX_PAYLOAD_BYTES, ledger.capacity_bytes),
        )

    def fill_ratio(self) -> float:
        if self._far.finished:
            return 0.0
        self._far.catch_up()
        return self._arena.fill_ratio()

    def close(self) -> None:
        self._far.close()


def _nobody() -> None:
    """The owner's I/O thread is woken by the message itself."""
