"""Accepted frames of a shard whose producer lives in another process than the broker.

The producer writes frames into the shard's arena itself (the owner passed its memory on) and says
where each lies; the owner says how many of the oldest it has freed. Both keep the same deque of
slots, so room is known here without asking: `accept` never waits for an answer, and what it accepted
the owner takes.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.arena import Arena, Slot
from asys_bench.backends.mp_queue.channel import close_in_children
from asys_bench.backends.mp_queue.counters import REASON_INDEX
from asys_bench.backends.mp_queue.wire import HEAD, Frame, Hello
from asys_bench.contracts.bus import BusError, DropReason
from asys_bench.system.descriptor import HeldSocket

_CATCH_UP_EVERY = 64
"""Accepted packets after which the owner's messages are read."""
_GOODBYE_S = 2.0
_MAX_WELCOME_BYTES = 1 << 16


class FarLedger:
    """See the module docstring. Not thread-safe: it belongs to one producer."""

    def __init__(self, address: str, token: str, shard: int, timeout_s: float) -> None:
        """Take the producer of `shard` over there.

        Raises:
            BusError: no owner, or it refuses (no such shard, already taken, wrong token).
        """
        self.finished = False
        self.checksum = False
        self._held = HeldSocket(wire.connect(address, timeout_s))
        self._sock = self._held.sock
        try:
            self.arena = self._greet(token, shard)
            self._sock.setblocking(False)
        except BaseException:
            self._held.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._incoming = bytearray()
        self._unsent = b""
        """The rest of a frame that the kernel took in part."""
        self._refused: dict[DropReason, int] = {}
        """Refusals that the owner has not been told."""
        self._since_look = 0
        self._closed = False
        close_in_children(self)

    def accept(
        self, hook_id: int, shard: int, offset: int, size: int, nbytes: int
    ) -> bool | DropReason:
        """Tell the owner of a frame that lies in the arena; see `Broker.accept`.

        FULL when the owner is so far behind that the kernel takes no more messages.
        """
        if self.finished:
            return DropReason.CLOSED
        if not self._flush() or not self._send(wire.encode_publish(hook_id, offset, nbytes)):
            return DropReason.CLOSED if self.finished else DropReason.FULL
        self.arena.add(Slot(0, shard, offset, size, nbytes, 1))
        self._since_look += 1
        if self._since_look >= _CATCH_UP_EVERY:
            self.catch_up()
        return False

    def refuse(self, reason: DropReason, count: int = 1) -> None:
        """Have the owner count refused packets; nothing once it is gone or finished."""
        self._refused[reason] = self._refused.get(reason, 0) + count
        self._flush()

    def catch_up(self, timeout_s: float = 0.0) -> None:
        """Read what the owner has said: freed frames, or that the bus takes no more."""
        self._since_look = 0
        if not self._held.held:
            self.finished = True  # this process has closed it
        if self.finished:
            return
        if timeout_s > 0:
            self._poll.poll(timeout_s * 1000 + 0.5)
        while True:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.finished = True  # the owner is gone, or has closed the bus
                return
            self._incoming += data
            self._read_frames()

    def close(self) -> None:
        """Say goodbye and wait until the owner has booked everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + _GOODBYE_S
        said = False
        while not self.finished and time.monotonic() < deadline:
            if self._flush() and not said:
                said = self._send(HEAD.pack(Frame.BYE, 0, 0))
            self.catch_up(0.02)
        self.finished = True
        self._held.close()
        self.arena.close()

    def after_fork_in_child(self) -> None:
        """Close the inherited socket, so that the owner sees this process's death as end of file."""
        self._closed = self.finished = True
        self._held.close()

    def _greet(self, token: str, shard: int) -> Arena:
        hello = Hello("", f"producer-{os.getpid()}", None, shard)
        fds: list[int] = []
        try:
            self._sock.sendall(wire.encode_hello(token, hello), wire.NO_SIGNAL)
            head, fds, _, _ = socket.recv_fds(self._sock, HEAD.size, 1)
            head += wire.receive_exactly(self._sock, HEAD.size - len(head))
            kind, count, _ = HEAD.unpack(head)
            if kind != Frame.WELCOME or count > _MAX_WELCOME_BYTES:
                raise BusError(f"the bus owner answered with frame type {kind}, not WELCOME")
            facts = json.loads(wire.receive_exactly(self._sock, count))
            if facts["error"] is not None:
                raise BusError(str(facts["error"]))
            if len(fds) != 1:
                raise BusError("the bus owner passed no memory; is it of another version?")
            self.checksum = bool(facts["checksum"])
            self.capacity_bytes = int(facts["capacity_bytes"])
            return Arena(int(facts["capacity_packets"]), self.capacity_bytes, of=fds[0])
        except (OSError, ValueError, KeyError, TypeError) as reason:
            raise BusError(f"the bus owner did not welcome this producer: {reason}") from reason
        finally:
            for fd in fds:
                os.close(fd)

    def _read_frames(self) -> None:
        at = 0
        while len(self._incoming) - at >= HEAD.size:
            kind, _, value = HEAD.unpack_from(self._incoming, at)
            at += HEAD.size
            if kind == Frame.FREED:
                slots = self.arena.slots
                for _ in range(min(value, len(slots))):
                    slots.popleft()
            elif kind == Frame.END:
                self.finished = True
        del self._incoming[:at]

    def _flush(self) -> bool:
        """Send what is owed. False: the kernel takes nothing now, or the owner is gone."""
        while self._unsent or self._refused:
            if self._unsent:
                owed, self._unsent = self._unsent, b""
                if not self._send(owed):
                    self._unsent = owed
                    return False
                continue
            reason, count = next(iter(self._refused.items()))
            if not self._send(HEAD.pack(Frame.REFUSED, REASON_INDEX[reason], count)):
                return False
            del self._refused[reason]
        return True

    def _send(self, data: bytes) -> bool:
        """True when it is sent, or at least begun (its rest is then owed)."""
        if self.finished:
            return False
        try:
            sent = self._sock.send(data, wire.NO_SIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self.finished = True
            return False
        self._unsent = data[sent:]
        return True
