"""One consumer's channel as the owner sees it: its unparsed input, claims and unsent output."""

from __future__ import annotations

import socket
import sys
from array import array
from collections import deque
from collections.abc import Iterator

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.arena import Arena, Slot
from asys_bench.backends.mp_queue.broker import Group
from asys_bench.backends.mp_queue.wire import HEAD, Frame
from asys_bench.contracts.packet import HEADER_BYTES
from asys_bench.system.descriptor import HeldSocket

_IOV_MAX = 512
_READ_BYTES = 65536


class ProtocolError(ValueError):
    """A consumer sent what no consumer of ours sends."""


class Member:
    """State of one channel; only the I/O thread touches it."""

    def __init__(self, sock: HeldSocket, pid: int) -> None:
        self.channel = sock
        self.pid = pid
        self.name = "?"
        self.group: Group | None = None
        self.shard: int | None = None
        """Of a producer's channel; it has no group."""
        self.batches: dict[int, list[Slot]] = {}
        self.wants = 0
        self.least = 0
        self.ended = False
        self.gone = False
        self.watching_write = False
        self.outgoing: deque[memoryview] = deque()
        self._incoming = bytearray()
        self._next_batch = 0

    @property
    def sock(self) -> socket.socket:
        """Raises OSError: this process has closed it, and the consumer is gone."""
        return self.channel.sock

    def __repr__(self) -> str:
        if self.shard is not None:
            return f"the producer of shard {self.shard} (process {self.pid})"
        group = None if self.group is None else self.group.spec.name
        return f"member {self.name!r} of group {group!r} (process {self.pid})"

    def read(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Whole frames that have arrived: (type, count, value, body).

        Raises:
            ConnectionError: the consumer is gone.
            ProtocolError: a HELLO that is too long.
        """
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("end of file")
        buffer = self._incoming
        buffer += data
        at = 0
        while len(buffer) - at >= HEAD.size:
            kind, count, value = HEAD.unpack_from(buffer, at)
            body = b""
            end = at + HEAD.size
            if kind == Frame.HELLO:
                if count > wire.MAX_HELLO_BYTES:
                    raise ProtocolError(f"a HELLO of {count} bytes")
                end += count
                if len(buffer) < end:
                    break
                body = bytes(buffer[end - count : end])
            at = end
            yield kind, count, value, body
        del buffer[:at]

    def settle(self, batch_id: int) -> list[Slot]:
        """Forget a batch that was handed out; returns its packets.

        Raises:
            ProtocolError: it holds no such batch.
        """
        try:
            return self.batches.pop(batch_id)
        except KeyError:
            raise ProtocolError(f"batch {batch_id} is not its own") from None

    def send_batch(self, items: list[Slot], arenas: list[Arena]) -> None:
        """Hand out `items` as one batch (an answer to its PULL; may be empty)."""
        self._next_batch += 1
        if items:
            self.batches[self._next_batch] = items
        head = HEAD.pack(Frame.BATCH, len(items), self._next_batch)
        sizes = array("Q", [HEADER_BYTES + item.nbytes for item in items])
        if sys.byteorder == "big":
            sizes.byteswap()
        self.outgoing.append(memoryview(head + sizes.tobytes()))
        for shard, start, end in _runs(items):
            self.outgoing.append(arenas[shard].view[start:end])

    def send(self, data: bytes) -> None:
        """Append to the output; `flush` sends it."""
        self.outgoing.append(memoryview(data))

    def flush(self) -> bool:
        """Send what the kernel takes now. True: nothing is left to send.

        Raises:
            OSError: the consumer is gone.
        """
        outgoing = self.outgoing
        while outgoing:
            batch = [outgoing[i] for i in range(min(len(outgoing), _IOV_MAX))]
            try:
                sent = self.sock.sendmsg(batch, [], wire.NO_SIGNAL)
            except BlockingIOError:
                return False
            while sent:
                first = outgoing[0]
                if len(first) > sent:
                    outgoing[0] = first[sent:]
                    break
                sent -= len(first)
                outgoing.popleft()
        return True


def _runs(items: list[Slot]) -> Iterator[tuple[int, int, int]]:
    """(shard, start, end) of neighbouring frames: one iovec for a whole batch, mostly."""
    shard, start, end = -1, 0, 0
    for item in items:
        if item.shard != shard or item.offset != end:
            if end > start:
                yield shard, start, end
            shard, start = item.shard, item.offset
        end = item.offset + item.size
    if end > start:
        yield shard, start, end
