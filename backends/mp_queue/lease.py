"""A batch of packets in one private buffer of the consumer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from ctypes import addressof, c_char

from asys_bench.backends.mp_queue.wire import ALIGN, padded
from asys_bench.contracts.bus import Lease
from asys_bench.contracts.packet import HEADER_BYTES, ActivationPacket, set_payload

SLACK_BYTES = 2 * ALIGN
"""Room before the first frame (alignment) and after the last (the export probe)."""


class Batch:
    """Frames as received: where they lie in `buffer`."""

    def __init__(self, batch_id: int, sizes: Sequence[int], spare: bytearray | None) -> None:
        self.batch_id = batch_id
        self.sizes = list(sizes)
        self.body_bytes = sum(padded(size) for size in self.sizes)
        needed = self.body_bytes + SLACK_BYTES
        self.buffer = spare if spare is not None and len(spare) >= needed else bytearray(needed)
        self.start = -addressof(c_char.from_buffer(self.buffer)) % ALIGN

    def body(self) -> memoryview:
        """Where the frames are received."""
        return memoryview(self.buffer)[self.start : self.start + self.body_bytes]

    def keep_first(self, nbytes: int) -> None:
        """Only `nbytes` of the body came (the owner died): keep the packets that are whole."""
        whole, end = 0, 0
        for size in self.sizes:
            if end + size > nbytes:
                break
            end += padded(size)
            whole += 1
        del self.sizes[whole:]


class QueueLease(Lease):
    """A claimed batch; see `contracts.bus.Lease`."""

    def __init__(
        self,
        batch: Batch,
        settle: Callable[[int, bool], bool],
        recycle: Callable[[bytearray], None],
    ) -> None:
        """`settle(batch_id, delivered)` tells the owner and says whether the claim still stood."""
        self._batch = batch
        self._settle = settle
        self._recycle = recycle
        self._outcome: int | None = None
        self._root = memoryview(batch.buffer)
        packets = []
        at = batch.start
        for size in batch.sizes:
            payload = self._root[at + HEADER_BYTES : at + size]
            packets.append(ActivationPacket.from_parts(self._root, payload, at))
            at += padded(size)
        self._packets: tuple[ActivationPacket, ...] = tuple(packets)

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return self._packets

    def release(self) -> int:
        if self._outcome is not None:
            return self._outcome
        self._release_views()
        stood = self._settle(self._batch.batch_id, True)
        self._outcome = len(self._packets) if stood else 0
        self._recycle(self._batch.buffer)
        return self._outcome

    def give_back(self) -> None:
        # Views may live on in a traceback: the buffer is private, so it is left to them.
        if self._outcome is None:
            self._settle(self._batch.batch_id, False)
            self._outcome = 0

    def _release_views(self) -> None:
        """Release our views; put them back and raise BufferError while any other view lives."""
        buffer = self._batch.buffer
        for packet in self._packets:
            with contextlib.suppress(BufferError):  # the probe below notices too
                packet.payload.release()
        with contextlib.suppress(BufferError):
            self._root.release()
        try:
            buffer.pop()  # a bytearray refuses to change its size while any buffer export lives
        except BufferError:
            self._restore_views()
            raise BufferError(
                f"a view of a payload of this lease ({len(self._packets)} packets) is still alive; "
                "drop every array, tensor and memoryview of it (or copy) and call release() again"
            ) from None
        buffer.append(0)

    def _restore_views(self) -> None:
        self._root = memoryview(self._batch.buffer)
        at = self._batch.start
        for packet, size in zip(self._packets, self._batch.sizes, strict=True):
            view = self._root[at + HEADER_BYTES : at + size]
            set_payload(packet, view)
            at += padded(size)


class EmptyLease(Lease):
    """What a pull returns when nothing came."""

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return ()

    def release(self) -> int:
        return 0

    def give_back(self) -> None:
        return None
