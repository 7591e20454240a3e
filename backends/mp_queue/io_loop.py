"""The owner's I/O thread: accepts consumers, sends batches, takes acknowledgements, sees deaths."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import socket
import threading
from array import array
from collections import deque
from collections.abc import Callable

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.arena import Slot
from asys_bench.backends.mp_queue.broker import Broker, Group
from asys_bench.backends.mp_queue.counters import REASONS
from asys_bench.backends.mp_queue.member import Member, ProtocolError
from asys_bench.backends.mp_queue.wire import Frame
from asys_bench.contracts.bus import BusError, DropReason
from asys_bench.contracts.packet import HEADER_BYTES

log = logging.getLogger(__name__)


class IoLoop:
    """One daemon thread with a selector. Only it touches sockets and `Member`s."""

    def __init__(self, broker: Broker, token: str, buffer_bytes: int) -> None:
        """Listen and start. Raises OSError when no socket or thread is to be had."""
        self._broker = broker
        self._token = token
        self._buffer_bytes = buffer_bytes
        self._listener, self.address, self._folder = wire.listen()
        self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._members: dict[int, Member] = {}
        self._far_producers: list[Member] = []
        self._waiting: dict[Group, deque[Member]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="asys-mp-queue-io", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make the thread look at the queues; never blocks."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake anyway
            self._wake_in.send(b"\0")

    def reap(self, pid: int) -> int:
        """Drop the channels of `pid`; returns how many claimed packets were taken back."""
        taken: list[int] = []
        done = threading.Event()

        def drop_all() -> None:
            for member in list(self._members.values()):
                if member.pid == pid:
                    taken.append(sum(len(batch) for batch in member.batches.values()))
                    self._drop(member)
            done.set()

        self._calls.append(drop_all)
        self.wake()
        while self._thread.is_alive() and not done.wait(0.05):
            pass
        return sum(taken)

    def stop(self) -> None:
        """End the thread and close every socket."""
        self._stopping = True
        self.wake()
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()

    def abandon(self) -> None:
        """In a forked child: close the inherited descriptors so that ends of file stay visible."""
        self._selector.close()
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()
        for member in list(self._members.values()):
            member.sock.close()
        for arena in self._broker.arenas:
            arena.abandon()
        os.close(self._spare_fd)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            for member in list(self._members.values()):
                # Claims stay counted as ready: nobody can say any more what became of them.
                with contextlib.suppress(OSError):
                    member.sock.shutdown(socket.SHUT_RDWR)
                member.sock.close()
                member.outgoing.clear()
            self._selector.close()
            self._listener.close()
            os.close(self._spare_fd)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _turn(self) -> None:
        for key, mask in self._selector.select():
            if key.fileobj is self._wake_out:
                with contextlib.suppress(BlockingIOError):
                    self._wake_out.recv(4096)
            elif key.fileobj is self._listener:
                self._accept()
            elif (member := self._members.get(key.fd)) is not None:
                self._guarded(member, self._serve, mask)
        while self._calls:
            self._calls.popleft()()
        # Every frame that had arrived is handled before anything is handed out: what one member
        # released or gave back is there for the next.
        for group in list(self._waiting):
            self._dispatch(group)
        if self._broker.finished:
            for member in list(self._members.values()):
                if member.group is not None and not member.ended:
                    self._guarded(member, self._end_if_exhausted)
        for member in list(self._far_producers):
            self._guarded(member, self._tell_producer)

    def _guarded(self, member: Member, action: Callable[..., None], *args: object) -> None:
        """One channel's trouble ends that channel only."""
        try:
            action(member, *args)
        except (OSError, ProtocolError, BusError) as error:
            if isinstance(error, ProtocolError | BusError):
                log.warning("dropping %s: %s", member, error)
            self._drop(member)
        except Exception:  # one consumer must not stop the bus for the others
            log.exception("dropping %s after an unexpected error", member)
            self._drop(member)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("cannot accept a consumer: %s", error)
            self._turn_away()
            return
        sock.setblocking(False)
        pid, uid = wire.peer_of(sock)
        if uid != os.geteuid():
            log.warning("refused process %d of user %d", pid, uid)
            sock.close()
            return
        wire.size_buffers(sock, self._buffer_bytes)
        self._members[sock.fileno()] = Member(sock, pid)
        self._selector.register(sock, selectors.EVENT_READ)

    def _turn_away(self) -> None:
        """Out of descriptors: spend the spare one to hang up, or the listener would spin."""
        with contextlib.suppress(OSError):
            os.close(self._spare_fd)
            with contextlib.suppress(OSError):
                self._listener.accept()[0].close()
            self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _serve(self, member: Member, mask: int) -> None:
        if mask & selectors.EVENT_READ:
            for kind, count, value, body in member.read():
                self._handle(member, kind, count, value, body)
                if member.gone:
                    return
        if mask & selectors.EVENT_WRITE:
            self._flush(member)

    def _handle(self, member: Member, kind: int, count: int, value: int, body: bytes) -> None:
        if kind == Frame.HELLO and member.group is None and member.shard is None:
            self._welcome(member, body)
            return
        if member.shard is not None:
            self._book(member, member.shard, kind, count, value)
            return
        group = member.group
        if group is None:
            raise ProtocolError("it spoke before HELLO")
        if kind in (Frame.PULL, Frame.PULL_NOW):
            if member.wants or not count:
                raise ProtocolError("a PULL of nothing, or two at once")
            if not member.ended:
                member.wants, member.least = count, value
                if kind == Frame.PULL_NOW:
                    member.least = 0
                self._waiting.setdefault(group, deque()).append(member)
        elif kind == Frame.CANCEL:
            member.least = 0
        elif kind == Frame.ACK:
            self._broker.acknowledge(group, member.settle(value))
        elif kind == Frame.GIVE_BACK:
            self._broker.take_back(group, member.settle(value), seen=True)
        elif kind == Frame.RETURN:
            self._broker.take_back(group, member.settle(value), seen=False)
        elif kind == Frame.RETIRE:
            self._broker.retire(group.spec.name)
        elif kind == Frame.BYE:
            self._drop(member, last_seen=value)
        else:
            raise ProtocolError(f"unexpected frame type {kind}")

    def _welcome(self, member: Member, body: bytes) -> None:
        try:
            hello = wire.decode_hello(body, self._token)
            member.name = hello.member
            if hello.shard is not None:
                self._admit_producer(member, hello.shard)
                return
            member.group = self._broker.join(hello.group, hello.spec)
        except BusError as error:
            member.send(wire.encode_welcome(str(error)))
            self._flush(member)
            raise
        member.send(wire.encode_welcome(None))
        self._flush(member)

    def _admit_producer(self, member: Member, shard: int) -> None:
        request = self._broker.request
        if not 0 <= shard < request.shards or self._broker.arenas[shard].fd < 0:
            raise BusError(f"no shard {shard} for other processes; this bus has {request.shards}")
        self._broker.take_shard(shard)
        welcome = wire.encode_welcome(
            None,
            capacity_packets=request.capacity_packets,
            capacity_bytes=request.capacity_bytes,
            checksum=int(request.checksum),
        )
        member.shard = shard
        self._far_producers.append(member)
        # Some dozen bytes on a fresh socket: they go out whole.
        rights = array("i", [self._broker.arenas[shard].fd])
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        member.sock.sendmsg([welcome], passed, wire.NO_SIGNAL)

    def _book(self, member: Member, shard: int, kind: int, count: int, value: int) -> None:
        """What the producer of a shard in another process says."""
        if kind == Frame.PUBLISH:
            offset, nbytes = wire.decode_publish(value)
            size = wire.padded(HEADER_BYTES + nbytes)
            if offset + size > self._broker.arenas[shard].size:
                raise ProtocolError(f"a frame of {size} bytes at {offset}, past the arena's end")
            outcome = self._broker.accept(count, shard, offset, size, nbytes)
            if isinstance(outcome, DropReason):
                self._broker.refuse(outcome)
        elif kind == Frame.REFUSED:
            if count >= len(REASONS):
                raise ProtocolError(f"no drop reason {count}")
            self._broker.refuse(REASONS[count], value)
        elif kind == Frame.BYE:
            self._drop(member)
        else:
            raise ProtocolError(f"unexpected frame type {kind} from a producer")

    def _tell_producer(self, member: Member) -> None:
        assert member.shard is not None
        freed = self._broker.take_freed(member.shard)
        if freed:
            member.send(wire.HEAD.pack(Frame.FREED, 0, freed))
        if self._broker.finished and not member.ended:
            member.ended = True
            member.send(wire.HEAD.pack(Frame.END, 0, 0))
        if member.outgoing:
            self._flush(member)

    def _dispatch(self, group: Group) -> None:
        """Answer the waiting members of `group` in the order in which they asked."""
        waiting = self._waiting.pop(group)
        still: deque[Member] = deque()
        while waiting:
            member = waiting.popleft()
            if member.gone or member.ended:
                continue
            items = self._broker.take(group, member.wants, member.least)
            if items is None:
                still.append(member)
            else:
                self._guarded(member, self._send_batch, items)
        if still:
            self._waiting[group] = still

    def _send_batch(self, member: Member, items: list[Slot]) -> None:
        member.wants = 0
        member.send_batch(items, self._broker.arenas)
        self._flush(member)

    def _end_if_exhausted(self, member: Member) -> None:
        assert member.group is not None
        if self._broker.exhausted(member.group):
            member.ended = True
            member.wants = 0
            member.send(wire.HEAD.pack(Frame.END, 0, 0))
            self._flush(member)

    def _flush(self, member: Member) -> None:
        done = member.flush()
        if done is member.watching_write:
            member.watching_write = not done
            events = selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE)
            self._selector.modify(member.sock, events)

    def _drop(self, member: Member, last_seen: int | None = None) -> None:
        """Close a channel; its claims go back. `last_seen`: batches past it were never opened."""
        if member.gone:
            return
        member.gone = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member.sock)
        self._members.pop(member.sock.fileno(), None)
        member.sock.close()
        member.outgoing.clear()
        if member in self._far_producers:
            self._far_producers.remove(member)
        group = member.group
        if group is None:
            return
        waiting = self._waiting.get(group)
        if waiting is not None and member in waiting:
            waiting.remove(member)
        unseen: list[Slot] = []
        seen: list[Slot] = []
        for batch_id, items in member.batches.items():
            opened = last_seen is None or batch_id <= last_seen
            (seen if opened else unseen).extend(items)
        member.batches.clear()
        self._broker.take_back(group, unseen, seen=False)
        self._broker.take_back(group, seen, seen=True)
        self._broker.leave(group)
        # Others may want what came back.
        if group in self._waiting:
            self.wake()
