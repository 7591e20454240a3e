"""The owner's I/O thread: accepts consumers, sends batches, takes acknowledgements, sees deaths."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import socket
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable

from asys_bench.backends.mp_queue import wire
from asys_bench.backends.mp_queue.arena import Slot
from asys_bench.backends.mp_queue.broker import Broker, Group
from asys_bench.backends.mp_queue.counters import REASONS
from asys_bench.backends.mp_queue.member import Member, ProtocolError
from asys_bench.backends.mp_queue.strangers import Strangers
from asys_bench.backends.mp_queue.wire import Frame
from asys_bench.contracts.bus import BusError, DropReason
from asys_bench.contracts.packet import HEADER_BYTES
from asys_bench.system.descriptor import Descriptor, HeldSocket

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""The thread looks after its sockets at least this often."""
STOP_S = 5.0
"""`stop` waits no longer for a thread that may be inside anything."""


def _spare() -> Descriptor:
    return Descriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


class IoLoop:
    """One daemon thread with a selector. Only it touches sockets and `Member`s."""

    def __init__(self, broker: Broker, token: str) -> None:
        """Listen and start. Raises OSError when no socket or thread is to be had."""
        self._broker = broker
        self._token = token
        listener, self.address, self._folder = wire.listen()
        self._listener = HeldSocket(listener)
        self._spare = _spare()
        # Empty datagrams wake the thread: should the host have closed the socket and opened one of its
        # own under this high number, an empty send leaves a stream of the host's as it is.
        wake_in, wake_out = socket.socketpair(type=socket.SOCK_DGRAM)
        wake_in.setblocking(False)
        wake_out.setblocking(False)
        self._wake_in, self._wake_out = HeldSocket(wake_in), HeldSocket(wake_out)
        self._send_wake = self._wake_in.sock.send
        # poll(2) needs no descriptor of its own, and says which of those it is given are closed.
        self._selector = selectors.PollSelector()
        self._selector.register(self._listener.number, selectors.EVENT_READ)
        self._selector.register(self._wake_out.number, selectors.EVENT_READ)
        self._strangers = Strangers()
        self._members: dict[int, Member] = {}
        self._far_producers: list[Member] = []
        self._waiting: dict[Group, deque[Member]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._next_look = time.monotonic() + LOOK_S
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="asys-mp-queue-io", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Make the thread look at the queues; never blocks."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake anyway
            self._send_wake(b"")

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
        self._thread.join(STOP_S)
        self._wake_in.close()
        self._wake_out.close()

    def abandon(self) -> None:
        """In a forked child: close the inherited descriptors so that ends of file stay visible."""
        self._selector.close()
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()
        for member in list(self._members.values()):
            member.channel.close()
        for arena in self._broker.arenas:
            arena.abandon()
        self._spare.close()

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
                member.channel.close()
                member.outgoing.clear()
            self._selector.close()
            self._listener.close()
            self._spare.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _turn(self) -> None:
        ready = self._selector.select(self._strangers.pause_s(LOOK_S))
        if not (self._listener.held and self._wake_out.held):
            self._give_up()
            return
        if self._strangers.over():
            self._selector.register(self._listener.number, selectors.EVENT_READ)
        for key, mask in ready:
            if key.fd == self._wake_out.number:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        self._wake_out.sock.recv(1)
            elif key.fd == self._listener.number:
                self._accept_all()
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
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + LOOK_S
            for slot in self._broker.standing_still():
                self._drop_who_stands_still(slot)

    def _drop_who_stands_still(self, slot: Slot) -> None:
        """A reader that joined late and may lose packets (`subscribe`) must not hold up the others, not
        when it is stopped (SIGSTOP, a debugger) with the oldest packet in its hands either."""
        for member in list(self._members.values()):
            group = member.group
            if group is None or group.declared or group.retry:
                continue
            claimed = any(slot in batch for batch in member.batches.values())
            if claimed or (group.pending and group.pending[0] is slot):
                log.warning("dropping %s: it stands still and fills the bus for everybody", member)
                self._drop(member)

    def _guarded(self, member: Member, action: Callable[..., None], *args: object) -> None:
        """One channel's trouble ends that channel only."""
        try:
            action(member, *args)
        except (OSError, ProtocolError, BusError) as error:
            if isinstance(error, ProtocolError | BusError):
                self._strangers.say("dropping %s: %s", member, error)
            self._drop(member)
        except Exception:  # one consumer must not stop the bus for the others
            log.exception("dropping %s after an unexpected error", member)
            self._drop(member)

    def _give_up(self) -> None:
        """The host has closed the sockets: nobody can be handed anything any more."""
        log.error(
            "this process closed the sockets of its mp_queue bus: what is pushed from now on is refused "
            "and counted (bus.backend cpp_spmc and numba_ring live on in shared memory)"
        )
        self._broker.finish()
        for member in list(self._members.values()):
            self._drop(member)
        self._stopping = True

    def _accept_all(self) -> None:
        """Who has connected, at most a backlog of them."""
        for _ in range(wire.BACKLOG):
            if not self._accept():
                return
            if self._strangers.too_many():  # the kernel keeps the others waiting meanwhile
                self._selector.unregister(self._listener.number)
                return

    def _accept(self) -> bool:
        """One connection, if there is one. Its user is asked for before anything else is done."""
        try:
            sock, _ = self._listener.sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            self._strangers.say("cannot accept a consumer: %s", error)
            self._turn_away()
            return False
        pid, uid = wire.peer_of(sock)
        if uid != os.geteuid():
            sock.close()
            self._strangers.refused(pid, uid)
            return True
        sock.setblocking(False)
        wire.size_buffers(sock)
        channel = HeldSocket(sock)
        self._members[channel.number] = Member(channel, pid)
        self._selector.register(channel.number, selectors.EVENT_READ)
        return True

    def _turn_away(self) -> None:
        """Out of descriptors: spend the spare one to hang up, or the listener would spin."""
        with contextlib.suppress(OSError):
            self._spare.close()
            with contextlib.suppress(OSError):
                self._listener.sock.accept()[0].close()
            self._spare = _spare()

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
        if not 0 <= shard < request.shards or not self._broker.arenas[shard].shared:
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
            self._selector.modify(member.channel.number, events)

    def _drop(self, member: Member, last_seen: int | None = None) -> None:
        """Close a channel; its claims go back. `last_seen`: batches past it were never opened."""
        if member.gone:
            return
        member.gone = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member.channel.number)
        self._members.pop(member.channel.number, None)
        member.channel.close()
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
