"""A ring, a forwarder, a network and a receiver in one process, without sockets: what the state machine
drives."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asys_bench.cluster import wire
from asys_bench.cluster.admission import Limits
from asys_bench.cluster.intake import Intake
from asys_bench.cluster.ledger import Ledger, SenderKey
from asys_bench.cluster.outbox import Counts, Dropped, Outbox
from asys_bench.cluster.session import Session, SessionOverError
from asys_bench.contracts.bus import MAX_DELIVERIES, Lease
from asys_bench.contracts.packet import HEADERS, NO_PARAMS, ActivationPacket, Kind, Places

Key = tuple[int, int, int]
NAMES = {0: "identity", 1: "layer.0", 2: "layer.1", 3: "int8"}
BATCH, MOST = 4096, 16384
HOLD_S, WAIT_S = 1.0, 5.0


class KilledError(Exception):
    """The process that was in this call is gone."""


def packet(key: Key, nbytes: int, hook: int = 1, encoding: int = 0) -> ActivationPacket:
    source, shard, seq = key
    return ActivationPacket(
        seq=seq, source=source, shard=shard, hook_id=hook, kind=Kind.ACTIVATION, dtype=torch.uint8,
        shape=(nbytes,), host_step=seq, timestamp_ns=1 + seq, weights_version=0, encoding_id=encoding,
        params=NO_PARAMS, sampling_rate=1.0, call_index=0, microbatch=0, token_position=-1, crc=None,
        payload=memoryview(bytes((seq + i) & 0xFF for i in range(nbytes))),
    )  # fmt: skip


class Ring:
    """One at_least_once group of a bus."""

    def __init__(self) -> None:
        self.pending: deque[tuple[ActivationPacket, int]] = deque()
        self.claimed: dict[Key, tuple[ActivationPacket, int]] = {}
        self.delivered: set[Key] = set()
        self.dead: set[Key] = set()
        self._epoch = 0

    def push(self, one: ActivationPacket) -> None:
        self.pending.append((one, 0))

    def pull(self, most: int) -> RingLease:
        taken = [self.pending.popleft() for _ in range(min(most, len(self.pending)))]
        for one, count in taken:
            self.claimed[key_of(one)] = one, count
        return RingLease(self, [one for one, _ in taken], self._epoch)

    def kill_reader(self) -> None:
        self._epoch += 1
        again = []
        for key, (one, count) in self.claimed.items():
            if count + 1 >= MAX_DELIVERIES:
                self.dead.add(key)
            else:
                again.append((one, count + 1))
        self.claimed.clear()
        self.pending.extendleft(reversed(again))


class RingLease(Lease):
    def __init__(self, ring: Ring, packets: list[ActivationPacket], epoch: int) -> None:
        self._ring, self._packets, self._epoch = ring, packets, epoch

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return self._packets

    def release(self) -> int:
        assert self._epoch == self._ring._epoch, "a dead forwarder releases nothing"
        for one in self._packets:
            del self._ring.claimed[key_of(one)]
            self._ring.delivered.add(key_of(one))
        return len(self._packets)

    def give_back(self) -> None:
        raise NotImplementedError


def key_of(one: ActivationPacket) -> Key:
    return one.source, one.shard, one.seq


class ReceiverBus:
    """The receiver's ring: what was pushed, ever, and what of it is still in the ring.

    die: in the next push, `before`, `within` or `after` it; with ` unknown` nobody can tell. most: packets
    that it takes in one call.
    """

    max_packet = 1 << 20

    def __init__(self, pushed: list[tuple[Key, bytes]], capacity: int) -> None:
        self._pushed, self._capacity = pushed, capacity
        self.here = 0
        self.in_ring: deque[int] = deque()
        self.die: str | None = None
        self.most = 1 << 30
        self.offered: list[Key] = []
        """In the last call."""
        self.taken = 0
        """Of those."""
        self._ids: dict[str, int] = {}

    def begin(self, feed: dict[str, Any]) -> None:
        self.shards = feed["shards"]

    def id_of(self, name: str) -> int:
        return self._ids.setdefault(name, 100 + len(self._ids))

    def push(self, shard: int, data: memoryview, places: Places) -> int:
        assert 0 <= shard < self.shards
        frames = [ActivationPacket.unpack(data[at : at + size]) for at, size in places.tolist()]
        self.offered = [key_of(one) for one in frames]
        when = (self.die or "").removesuffix(" unknown")
        most = {"before": 0, "within": len(frames) // 2}.get(when, self.most)
        self.taken = min(most, len(frames))
        for one, (_, size) in zip(frames[: self.taken], places.tolist(), strict=False):
            assert one.hook_id in self._ids.values()
            self._pushed.append((key_of(one), bytes(one.payload)))
            self.here += 1
            self.in_ring.append(size)
        if when:
            raise KilledError
        return self.taken

    def room(self) -> tuple[int, int]:
        return max(0, self._capacity - sum(self.in_ring)), max(0, 64 - len(self.in_ring))

    def passed(self, host_step: int) -> None:
        pass


class Tracker:
    done = True


class World:
    """See the module's docstring. Time stands still but for `pass_time`."""

    def __init__(
        self,
        folder: Path,
        streams: Sequence[tuple[int, int]] = ((0, 0), (1, 1)),
        window: int = 2 * MOST,
    ) -> None:
        self.folder, self.streams = folder, streams
        self.ring = Ring()
        self.now = 100.0
        self.next_seq = dict.fromkeys(streams, 0)
        self.offered: dict[Key, bytes] = {}
        self.pushed: list[tuple[Key, bytes]] = []
        self.attempt = -1
        self.incarnation = 0
        self.connections = 0
        self.slot = Counts()
        self.receiver_id: tuple[str, int] | None = None
        self.to_receiver: deque[bytes] = deque()
        self.to_forwarder: deque[tuple[bytes, bytes]] = deque()
        self.session: Session | None = None
        self.peer = b""
        self._peers = itertools.count()
        self.refusals: list[str] = []
        self.max_outstanding = 0
        self.never_pushed: set[Key] = set()
        """Packets that count as pushed because nobody could tell, and were not."""
        self.in_doubt_and_pushed = 0
        self.limits = Limits(window, memory=3 * MOST, message=MOST, connections=4, shards=4)
        self.told: dict[int, str] = {}
        self.writers: set[tuple[int, int]] = set()
        self.start_receiver()
        self.start_forwarder()

    # The origin.

    def produce(
        self, stream: tuple[int, int], nbytes: int, hook: int = 1, encoding: int = 0
    ) -> None:
        seq = self.next_seq[stream]
        self.next_seq[stream] += 1
        one = packet((*stream, seq), nbytes, hook, encoding)
        self.offered[key_of(one)] = bytes(one.payload)
        self.ring.push(one)

    def start_forwarder(self) -> None:
        self.outbox = Outbox(MOST, BATCH)
        self.elsewhere = 0
        if self.incarnation:
            self.outbox.resume(self.slot, len(self.ring.delivered))
            if self.receiver_id is not None:
                self.elsewhere = self.receiver_id[1]
        self.publish()

    def publish(self) -> None:
        counts = self.outbox.counts
        self.slot = Counts(counts.taken, counts.acked, dict(counts.dropped))

    def pull(self, most: int) -> None:
        lease = self.ring.pull(most)
        if len(lease):
            for one in lease:
                self.writers.add((one.source, one.shard))
                for number in (one.hook_id, one.encoding_id):
                    self.told[number] = NAMES[number]
            self.outbox.offer(lease, np.frombuffer(lease.headers(), HEADERS), self.now)

    def kill_forwarder(self) -> None:
        self.ring.kill_reader()
        self.incarnation += 1
        self.session = None
        self.to_receiver.clear() if self.now % 2 else None
        self.told, self.writers = {}, set()
        self.start_forwarder()

    def connect(self) -> None:
        if self.session is not None:
            return
        self.connections += 1
        self.peer = b"p%d" % next(self._peers)
        self.session = Session(
            self.outbox, self._sender(self.peer), lambda view: self._sent(bytes(view)),
            lambda: int(1e9 * self.now), self._welcomed,
        )  # fmt: skip
        hello = wire.Hello(
            job="job", run_id="run", attempt=0, worker="remote-0", node="n", ranks=(),
            names={n: NAMES[n] for n in (1, 2)},
            streams=tuple({"name": name, "kind": "activation"} for name in ("layer.0", "layer.1")), side=(),
            step_unit="step", first_packet=0,
        )  # fmt: skip
        self.session.hello(self.connections, hello)

    def _sender(self, peer: bytes) -> Callable[[bytes], bool]:
        def send(data: bytes) -> bool:
            self.to_receiver.append(peer + b"|" + data)
            return True

        return send

    def _sent(self, data: bytes) -> Tracker:
        self.to_receiver.append(self.peer + b"|" + data)
        return Tracker()

    def _welcomed(self, welcome: wire.Welcome) -> None:
        if self.receiver_id is not None and self.receiver_id[0] != welcome.id:
            self.elsewhere = self.outbox.counts.acked
        self.receiver_id = welcome.id, self.elsewhere
        self.outbox.max_message, self.outbox.max_packet = welcome.max_message, welcome.max_packet
        self.outbox.welcome(welcome.accepted, self.elsewhere)

    def send(self) -> None:
        if self.session is not None:
            self.session.send(self.told, self.writers)

    def report(self) -> None:
        counts = self.outbox.counts
        if self.session is not None and self.session.welcomed:
            self.session.report(wire.Report(counts.taken, counts.acked, counts.in_flight))

    def lose_connection(self) -> None:
        """As the forwarder sees it; the receiver may not have noticed."""
        self.session = None
        self.outbox.disconnected()

    def reset(self) -> None:
        """What was under way is lost, on both ways."""
        self.to_receiver.clear()
        self.to_forwarder.clear()
        self.lose_connection()

    def hear(self) -> bool:
        """One message reaches the forwarder."""
        if not self.to_forwarder:
            return False
        peer, data = self.to_forwarder.popleft()
        if self.session is not None and peer == self.peer:
            try:
                self.session.receive(memoryview(bytearray(data)))
            except SessionOverError as over:
                if over.reason is not None:
                    self.refusals.append(str(over.reason))
                self.lose_connection()
        return True

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.outbox.hold(self.now - HOLD_S)
        if self.session is None or not self.session.welcomed:
            self.outbox.expire(self.now - WAIT_S)

    # The receiver.

    def start_receiver(self, told: bool = True) -> None:
        self.attempt += 1
        before = getattr(self, "bus", None)
        count = before.here if before is not None else 0
        self.ledger = Ledger(self.folder, self.attempt, lambda attempt: count if told else None)
        self.bus = ReceiverBus(self.pushed, MOST // 2)
        self.intake = Intake(
            self.ledger, self.bus, self.limits,
            lambda peer, data: self.to_forwarder.append((peer, data)), clock=lambda: self.now,
        )  # fmt: skip

    def kill_receiver(self, told: bool = True) -> None:
        """A SIGKILL: what was stored in the ledger's file is there. Its connections end."""
        self.ledger.close()
        self.to_receiver.clear()
        if self.session is not None:
            self.lose_connection()
        self.to_forwarder.clear()
        self.start_receiver(told)

    def take(self) -> bool:
        """One message reaches the receiver."""
        if not self.to_receiver:
            return False
        peer, _, data = self.to_receiver.popleft().partition(b"|")
        self._guarded(lambda: self.intake.receive(peer, memoryview(bytearray(data)), 10**12))
        return True

    def answer(self) -> None:
        self._guarded(self.intake.push_waiting)
        self.intake.answer()
        self.max_outstanding = max(self.max_outstanding, self.intake.outstanding)

    def read(self, count: int) -> None:
        """The receiver's workers free memory of its ring."""
        for _ in range(min(count, len(self.bus.in_ring))):
            self.bus.in_ring.popleft()

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except KilledError:
            told = not (self.bus.die or "").endswith("unknown")
            if not told:
                self.never_pushed.update(self.bus.offered[self.bus.taken :])
                self.in_doubt_and_pushed += self.bus.taken
            self.kill_receiver(told)

    # What must hold.

    @property
    def accepted(self) -> int:
        return self.ledger.accepted(SenderKey("run", 0, "remote-0"))

    def check(self) -> None:
        counts = self.outbox.counts
        keys = [key for key, _ in self.pushed]
        assert len(keys) == len(set(keys)), "a packet is on the receiver's bus twice"
        assert all(self.offered[key] == payload for key, payload in self.pushed)
        assert counts.taken == len(self.ring.delivered)
        assert counts.in_flight >= 0
        assert counts.acked <= self.accepted
        assert self.outbox.bytes <= MOST + BATCH
        assert self.intake.outstanding <= self.limits.memory
        assert set(self.intake.refused) <= {"stale"}, self.intake.refused
        assert self.accepted == len(keys) + len(self.never_pushed)
        assert self.ledger.in_doubt == self.in_doubt_and_pushed + len(self.never_pushed)

    def settle(self) -> None:
        """Until nothing is under way."""
        for _ in range(2000):
            self.connect()
            self.pull(8)
            self.send()
            while self.take():
                pass
            self.read(64)
            self.answer()
            while self.hear():
                pass
            self.check()
            if self.outbox.is_empty and not self.ring.pending and not self.ring.claimed:
                break
        else:
            raise AssertionError("it does not come to rest")
        self.answer()
        while self.hear():
            pass

    def check_quiet(self) -> None:
        """Every packet is somewhere: on the receiver's bus, dropped by reason, or a dead letter."""
        counts, keys = self.outbox.counts, {key for key, _ in self.pushed}
        assert counts.in_flight == 0
        assert self.ring.delivered | self.ring.dead == set(self.offered)
        dead_but_there = len((keys | self.never_pushed) & self.ring.dead)
        assert counts.acked == self.accepted - dead_but_there
        missing = len(self.ring.delivered - keys - self.never_pushed)
        assert sum(counts.dropped.values()) == missing, counts
        assert counts.dropped[Dropped.TOO_LARGE] == 0
