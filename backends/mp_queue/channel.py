"""A consumer's end of the channel: a resumable receiver of batches over a non-blocking socket."""

from __future__ import annotations

import json
import os
import select
import struct
import time
import weakref
from typing import Protocol

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.lease import Batch
from asys_bench.backends.mp_queue.wire import HEAD, Frame, Hello
from asys_bench.contracts.bus import BusError
from asys_bench.system.descriptor import HeldSocket

_SEND_TIMEOUT_S = 5.0
_MAX_BATCH_BYTES = 1 << 40


class OwnerGone(Exception):  # noqa: N818 - an outcome, not an error
    """End of file: the owner died or closed, and everything it sent has been read."""


class Channel:
    """One incarnation of one member. Not thread-safe.

    A wait that ends by its deadline or by a signal handler's exception leaves the stream where it
    was; the next `receive` goes on from there.
    """

    def __init__(self, address: str, token: str, hello: Hello, timeout_s: float):
        """Connect and be welcomed.

        Raises:
            BusError: nobody listens, or the owner refuses (unknown group, wrong token).
        """
        self._held = HeldSocket(wire.connect(address, timeout_s))
        self.sock = self._held.sock
        self.gone = False
        self.ended = False
        self.torn = False
        """A signal handler raised inside a read: bytes may be missing, reconnect."""
        self.last_batch = 0
        self.spare: bytearray | None = None
        self._head = bytearray(HEAD.size)
        self._sizes: bytearray | None = None
        self._batch: Batch | None = None
        self._filled = 0
        try:
            self._greet(token, hello)
            self.sock.setblocking(False)
        except BaseException:
            self._held.close()
            raise
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)

    def send(self, kind: Frame, count: int = 0, value: int = 0) -> None:
        """Send a head. A dead owner is only noted (`gone`): what it sent may still be read.

        Raises:
            BusError: the owner has read nothing for 5 s.
        """
        if self.gone:
            return
        data = HEAD.pack(kind, count, value)
        try:
            while data:
                try:
                    data = data[self.sock.send(data, wire.NO_SIGNAL) :]
                except BlockingIOError:
                    room = select.poll()
                    room.register(self.sock, select.POLLOUT)
                    if not room.poll(_SEND_TIMEOUT_S * 1000):
                        raise BusError(
                            f"the bus owner read nothing for {_SEND_TIMEOUT_S} s"
                        ) from None
        except OSError:
            self.gone = True

    def receive(self, deadline: float) -> Batch | None:
        """The next batch; None at `deadline` (time.monotonic) or at END (`ended`).

        Raises:
            OwnerGone: end of file.
            BusError: the bytes are not of this protocol.
        """
        if self._batch is None:
            if self._sizes is None:
                if not self._fill(memoryview(self._head), deadline):
                    return None
                kind, count, value = HEAD.unpack(self._head)
                if kind == Frame.END:
                    self.ended = True
                    return None
                if kind != Frame.BATCH:
                    raise BusError(f"unexpected frame type {kind} from the bus owner")
                self.last_batch = value
                self._sizes = bytearray(8 * count)
            if not self._fill(memoryview(self._sizes), deadline):
                return None
            sizes = struct.unpack(f"<{len(self._sizes) // 8}Q", self._sizes)
            if sum(sizes) > _MAX_BATCH_BYTES:
                raise BusError(f"a batch of {sum(sizes)} bytes from the bus owner")
            spare, self.spare = self.spare, None
            self._batch = Batch(self.last_batch, sizes, spare)
        batch = self._batch
        with batch.body() as body:
            if not self._fill(body, deadline):
                return None
        self._batch = self._sizes = None
        return batch

    @property
    def mid_batch(self) -> bool:
        """Part of a batch has been read."""
        return self._batch is not None or self._sizes is not None

    def salvage(self) -> Batch | None:
        """After `OwnerGone`: the whole packets of a batch that broke off."""
        batch, self._batch, self._sizes = self._batch, None, None
        if batch is None:
            return None
        batch.keep_first(self._filled)
        return batch if batch.sizes else None

    def recycle(self, buffer: bytearray) -> None:
        """Keep a released buffer for the next batch."""
        if self.spare is None or len(self.spare) < len(buffer):
            self.spare = buffer

    def close(self) -> None:
        self._held.close()

    def _fill(self, view: memoryview, deadline: float) -> bool:
        with view:
            while self._filled < len(view):
                self.torn = True
                try:
                    got = self.sock.recv_into(view[self._filled :])
                    self._filled += got
                    self.torn = False
                except BlockingIOError:
                    self.torn = False
                    if not self._wait(deadline):
                        return False
                    continue
                except OSError:
                    got = 0
                if not got:
                    self.torn = False
                    self.gone = True
                    raise OwnerGone
        self._filled = 0
        return True

    def _wait(self, deadline: float) -> bool:
        left_s = deadline - time.monotonic()
        return left_s > 0 and bool(self._poll.poll(left_s * 1000 + 0.5))

    def _greet(self, token: str, hello: Hello) -> None:
        try:
            self.sock.sendall(wire.encode_hello(token, hello), wire.NO_SIGNAL)
            kind, count, _ = HEAD.unpack(wire.receive_exactly(self.sock, HEAD.size))
            if kind != Frame.WELCOME:
                raise BusError(f"the bus owner answered with frame type {kind}, not WELCOME")
            error = json.loads(wire.receive_exactly(self.sock, count))["error"]
        except (OSError, ValueError) as reason:
            raise BusError(f"the bus owner did not welcome this consumer: {reason}") from reason
        if error is not None:
            raise BusError(str(error))


class Forkable(Protocol):
    """A bus or client whose sockets are closed in a forked child.

    A peer's death is seen as end of file. A forked child (a data loader's worker, say) that kept a copy
    of the socket would hide it.
    """

    def after_fork_in_child(self) -> None: ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registered = False


def close_in_children(thing: Forkable) -> None:
    """Call `thing.after_fork_in_child()` in every child forked while it lives."""
    global _registered
    if not _registered:
        os.register_at_fork(after_in_child=_close_in_child)
        _registered = True
    _watched.add(thing)


def _close_in_child() -> None:
    for thing in list(_watched):
        thing.after_fork_in_child()
    _watched.clear()
