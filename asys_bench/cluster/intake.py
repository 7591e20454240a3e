"""The receiver's side of every connection: who is let in, what is checked, what goes on the bus, what is
granted.

A message is checked as a whole before anything of it is pushed; a peer that sends what it should not is
refused by name and forgotten, and nothing that it sends later is looked at. Packets go on the bus in the
order in which they came, each written into the ledger (`ledger`), and wait here while the bus has no room.

Credit. A forwarder may have as many bytes of batches under way as it was granted: what the fullest shard of
the bus has room for, at most `window` for one connection, and at most `memory` for all of them together,
whatever they do. A batch beyond the grant is refused.

No socket and no bus here: `Bus` is what is needed of one, so that tests drive it with a list.
"""

from __future__ import annotations

import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from asys_bench.cluster import wire
from asys_bench.cluster.ledger import Account, Ledger, LedgerError, SenderKey, StreamKey
from asys_bench.cluster.wire import Ack, Message, Refusal, WireError
from asys_bench.contracts.bus import BusError
from asys_bench.contracts.names import matches
from asys_bench.contracts.packet import (
    DTYPES,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_NDIM,
    VERSION,
    Kind,
)

log = logging.getLogger(__name__)
SILENT_S = 15.0
"""A peer that has said nothing for so long is gone; forwarders report every second."""
REFUSED_REMEMBERED = 4096
MOST_ENCODINGS = 512
"""Of one connection."""
LEAST_CREDIT = 8 << 20
"""Bytes that a connection may have under way while the bus has no room: they wait here."""
_SEQ_AT, _TIME_AT, _IDS_AT = 8, 24, 54
_SEQ, _TIME, _IDS = struct.Struct("<Q"), struct.Struct("<Q"), struct.Struct("<HH")
_RUN_SHIFT = 40


class Bus(Protocol):
    """What the receiver needs of its own bus."""

    max_packet: int
    """Bytes of a packet, its header of the origin included."""

    def begin(self, feed: dict[str, Any]) -> None:
        """Start the run: streams, shards, step unit. Blocks until the workers consume."""

    def id_of(self, name: str) -> int:
        """The id of a name, interned now if it is new. Raises BusError: no room for it."""

    def push(self, shard: int, hook_id: int, kind: int, frame: memoryview) -> bool:
        """Put a packet on the bus; False: there is no room now."""

    def room(self) -> tuple[int, int]:
        """(bytes, packets) that the fullest shard has room for."""

    def passed(self, host_step: int) -> None:
        """A packet of this step of the origin was pushed."""


@dataclass(frozen=True)
class Limits:
    """Bytes and counts that a receiver allows.

    window: of batches under way, for one connection. memory: for all together. message: of one message.
    shards: writers of origins, each with a shard of the bus.
    """

    window: int = 64 << 20
    memory: int = 512 << 20
    message: int = 64 << 20
    connections: int = 256
    shards: int | None = None


NOTHING = Ack(0, 0, 0, 0, 0, 0, 0)


class _Waiting:
    """A checked batch that is not on the bus yet."""

    __slots__ = ("data", "nbytes", "next", "number", "packets")

    def __init__(self, number: int, data: memoryview, packets: list[Any]) -> None:
        self.number, self.data, self.packets = number, data, packets
        self.nbytes = data.nbytes
        self.next = 0


@dataclass
class Connection:
    """One forwarder that was welcomed."""

    peer: bytes
    sender: SenderKey
    hello: wire.Hello
    generation: int
    names: dict[int, str]
    heard: float
    accounts: dict[tuple[int, int], tuple[Account, int, int]] = field(default_factory=dict)
    """(source, shard) -> account, shard of the receiver's bus, what is added to a seq."""
    hooks: dict[int, int] = field(default_factory=dict)
    encodings: dict[int, int] = field(default_factory=dict)
    streams: frozenset[str] = frozenset()
    waiting: deque[_Waiting] = field(default_factory=deque)
    last: int = 0
    answered: Ack = NOTHING
    """Of the last batch that is on the bus as a whole; without total and limit."""
    received: int = 0
    processed: int = 0
    limit: int = 0
    accepted: int = 0
    duplicates: int = 0
    expired: int = 0
    unpushed: int = 0
    clock_offset_ns: int | None = None
    said: Ack | None = None
    owes: bool = False
    """It is to be answered though nothing has changed."""
    lag_ns: int | None = None
    """From the capture of the last packet to its arrival; it does not grow while nothing comes."""


class Intake:
    """See the module's docstring.

    name, hooks, job: of the receiver; an empty job takes the first that comes. send: a message to a peer.
    """

    def __init__(
        self,
        ledger: Ledger,
        bus: Bus,
        limits: Limits,
        send: Callable[[bytes, bytes], None],
        *,
        name: str = "receiver",
        hooks: Sequence[str] = ("*",),
        job: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._bus, self._limits, self._send = ledger, bus, limits, send
        self._name, self._hooks, self._clock = name, hooks, clock
        self.job = ledger.job or job
        self.connections: dict[bytes, Connection] = {}
        self._of_sender: dict[SenderKey, Connection] = {}
        self.refused: dict[str, int] = {}
        self._gone: deque[bytes] = deque(maxlen=REFUSED_REMEMBERED)
        self._gone_set: set[bytes] = set()
        self.opened = 0
        self.accepted_bytes = 0
        self.reports: dict[SenderKey, tuple[wire.Report, int]] = {}
        self.leaving = False
        self._began = False
        self._shards: dict[tuple[int, int], int] = {}
        self._trained: set[str] = set()
        self._side: set[str] = set()
        self._count = 0
        if ledger.feed is not None:
            self._begin(ledger.feed)
            for stream in ledger.streams:
                self._shard_of(stream.key.source, stream.key.shard)

    # Messages.

    def receive(self, peer: bytes, data: memoryview, clock_ns: int) -> None:
        """A message of `peer`. clock_ns: CLOCK_MONOTONIC of this node."""
        connection = self.connections.get(peer)
        if connection is None and peer in self._gone_set:
            return  # refused before; it was told
        try:
            kind, number = wire.head(data)
            if kind is Message.HELLO:
                if connection is not None:
                    raise WireError(Refusal.REPLAY, "a second HELLO in one connection")
                self._hello(peer, number, wire.parse(wire.Hello, data))
                return
            if connection is None:
                raise WireError(Refusal.MALFORMED, f"{kind.name} before HELLO")
            connection.heard = self._clock()
            if kind is Message.BATCH:
                self._batch(connection, number, data, clock_ns)
            elif kind is Message.NAMES:
                told = wire.parse(wire.Names, data)
                self._names(connection, told.names)
                self._writers(connection, told.ranks)
            elif kind is Message.QUERY:
                self._query(connection, number, data)
            elif kind is Message.REPORT or kind is Message.FIN:
                self._report(connection, wire.parse(wire.Report, data), final=kind is Message.FIN)
            else:
                raise WireError(Refusal.MALFORMED, f"{kind.name} is what a receiver sends")
        except WireError as error:
            self.refuse(peer, error.reason, str(error))
        except LedgerError as error:
            self.refuse(peer, Refusal.FULL, str(error))

    def refuse(self, peer: bytes, reason: Refusal, why: str) -> None:
        """The peer's connection is over."""
        connection = self.connections.get(peer)
        who = f"{connection.sender.run_id}/{connection.sender.worker}" if connection else "a peer"
        count = self.refused[reason] = self.refused.get(reason, 0) + 1
        if count <= 8 or count & (count - 1) == 0:
            log.warning("%s is refused (%s, %d so far): %s", who, reason, count, why)
        self._send(peer, wire.refused(reason, why))
        if connection is not None:
            self.forget(connection)
        self._remember_gone(peer)

    def forget(self, connection: Connection) -> None:
        """It is gone; what it had not put on the bus is dropped, and was never accepted."""
        self.connections.pop(connection.peer, None)
        if self._of_sender.get(connection.sender) is connection:
            del self._of_sender[connection.sender]
        connection.waiting.clear()
        self._remember_gone(connection.peer)

    def forget_all(self) -> None:
        for connection in list(self.connections.values()):
            self.forget(connection)

    def look(self) -> None:
        """Refuse who is silent."""
        now = self._clock()
        for connection in list(self.connections.values()):
            if now - connection.heard > SILENT_S:
                self.refuse(
                    connection.peer, Refusal.STALE, f"it has said nothing for {SILENT_S:g} s"
                )

    def _remember_gone(self, peer: bytes) -> None:
        if peer in self._gone_set:
            return
        if len(self._gone) == REFUSED_REMEMBERED:
            self._gone_set.discard(self._gone[0])
        self._gone.append(peer)
        self._gone_set.add(peer)

    # Who is let in.

    def _hello(self, peer: bytes, generation: int, hello: wire.Hello) -> None:
        sender = SenderKey(hello.run_id, hello.attempt, hello.worker)
        if self.leaving:
            raise WireError(Refusal.BUSY, f"{self._name} is leaving")
        if self.job and hello.job != self.job:
            raise WireError(
                Refusal.JOB, f"{self._name} takes packets of job {self.job!r}, not of {hello.job!r}"
            )
        streams = {str(one["name"]) for one in hello.streams}
        side = streams & set(hello.side)
        strange = [
            name
            for name in sorted(streams - side)
            if not any(matches(name, g) for g in self._hooks)
        ]
        if strange or not streams:
            raise WireError(
                Refusal.HOOKS, f"{self._name} takes hooks {list(self._hooks)}, not {strange[:20]}"
            )
        earlier = self._of_sender.get(sender)
        if earlier is not None:
            if generation <= earlier.generation:
                raise WireError(Refusal.STALE, f"{hello.worker} has connected again since")
            self.refuse(earlier.peer, Refusal.STALE, f"{hello.worker} has connected again since")
        for one in list(self.connections.values()):
            # Workers of an attempt have left before the next one begins: this is a half-open connection.
            if one.sender.run_id == hello.run_id and one.sender.attempt < hello.attempt:
                self.refuse(
                    one.peer, Refusal.STALE, f"attempt {hello.attempt} of the run has begun"
                )
        if len(self.connections) >= self._limits.connections:
            raise WireError(Refusal.BUSY, f"{self._name} has {len(self.connections)} connections")
        others = [one for one in self.connections.values() if one.sender.run_id == hello.run_id]
        taken = {name for one in others for name in one.streams}
        if both := sorted((streams - side) & taken):
            raise WireError(
                Refusal.OVERLAP, f"another forwarder of {hello.run_id} sends {both[:20]}"
            )
        if not self._began:
            self._begin(self._feed_for(hello), job=hello.job)
        unknown = sorted((streams - side) - self._trained) + sorted(side - self._side)
        if unknown:
            raise WireError(
                Refusal.HOOKS,
                f"{self._name} began its run with hooks {sorted(self._trained | self._side)[:50]}, without "
                f"{unknown[:20]}: its bus cannot take up others; start another receiver for them",
            )
        connection = Connection(
            peer, sender, hello, generation, {}, self._clock(), streams=frozenset(streams)
        )
        self._writers(connection, hello.ranks)
        self._names(connection, hello.names)
        self.connections[peer] = self._of_sender[sender] = connection
        self.opened += 1
        connection.limit = self._granted(connection, self._free(), self.outstanding)
        accepted = self._ledger.accepted(sender)
        welcome = wire.Welcome(
            self._name, self._ledger.id, accepted, self._limits.message, self._bus.max_packet,
            connection.limit, tuple(sorted(side & taken)),
        )  # fmt: skip
        log.info("%s/%s on %s: welcome", hello.run_id, hello.worker, hello.node)
        self._send(peer, wire.as_json(Message.WELCOME, 0, welcome))

    def _feed_for(self, hello: wire.Hello) -> dict[str, Any]:
        shards = self._limits.shards or max(1, hello.world, len(hello.ranks))
        return {
            "streams": [
                {**one, "side": one["name"] in hello.side} for one in hello.streams
            ],
            "shards": shards,
            "step_unit": hello.step_unit,
        }  # fmt: skip

    def _begin(self, feed: dict[str, Any], job: str | None = None) -> None:
        self._bus.begin(feed)
        self._began = True
        self._count = int(feed["shards"])
        for one in feed["streams"]:
            (self._side if one["side"] else self._trained).add(one["name"])
        if job is not None:
            self.job = self.job or job
            self._ledger.begin_run(self.job, feed)

    @property
    def began(self) -> bool:
        return self._began

    def _shard_of(self, source: int, shard: int) -> int:
        """The shard of this bus for a writer of an origin; its later runs and attempts have the same.

        Raises:
            WireError: there is none left.
        """
        found = self._shards.get((source, shard))
        if found is None:
            if len(self._shards) >= self._count:
                raise WireError(
                    Refusal.FULL,
                    f"{self._name} has {self._count} shards, all of them for other ranks: set "
                    "host.options.receiver.shards to the ranks of the job",
                )
            found = self._shards[source, shard] = len(self._shards)
        return found

    def _writers(self, connection: Connection, ranks: Sequence[tuple[int, int]]) -> None:
        hello = connection.hello
        for source, shard in ranks:
            local = self._shard_of(source, shard)
            stream = self._ledger.stream(StreamKey(hello.run_id, hello.attempt, source, shard))
            shift = (stream.run_number << _RUN_SHIFT) + hello.first_packet
            account = self._ledger.account(connection.sender, stream)
            connection.accounts[source, shard] = account, local, shift

    def _names(self, connection: Connection, names: dict[int, str]) -> None:
        if len(connection.names) + len(names) > wire.MAX_NAMES:
            raise WireError(Refusal.NAMES, f"more than {wire.MAX_NAMES} names")
        try:
            for number, name in names.items():
                connection.names[number] = name
                if name in connection.streams:
                    connection.hooks[number] = self._bus.id_of(name)
                elif name not in self._trained and name not in self._side:
                    if len(connection.encodings) == MOST_ENCODINGS:
                        raise WireError(Refusal.NAMES, f"more than {MOST_ENCODINGS} encodings")
                    connection.encodings[number] = self._bus.id_of(name)
        except BusError as error:
            raise WireError(Refusal.NAMES, str(error)) from None

    # Packets.

    def _batch(self, connection: Connection, number: int, data: memoryview, clock_ns: int) -> None:
        if number != connection.last + 1:
            raise WireError(Refusal.REPLAY, f"batch {number} after {connection.last}")
        if data.nbytes > self._limits.message:
            raise WireError(Refusal.TOO_LARGE, f"a batch of {data.nbytes} bytes")
        if connection.received + data.nbytes > connection.limit:
            raise WireError(
                Refusal.CREDIT,
                f"{connection.received + data.nbytes} bytes, and {connection.limit} were granted",
            )
        sent_ns, entries = wire.parse_batch(data, HEADER_BYTES)
        offset = clock_ns - sent_ns
        if connection.clock_offset_ns is None or offset < connection.clock_offset_ns:
            connection.clock_offset_ns = offset
        packets = self._checked(connection, data, entries, clock_ns)
        connection.last = number
        connection.received += data.nbytes
        connection.waiting.append(_Waiting(number, data, packets))
        self._push(connection)

    def _checked(
        self,
        connection: Connection,
        data: memoryview,
        entries: list[tuple[int, int]],
        clock_ns: int,
    ) -> list[tuple[Account, int, int, int, int, int, int, int]]:
        """Headers with this bus's ids, this node's time and seqs that go on; nothing is pushed.

        Raises:
            WireError: a header that does not fit.
        """
        found = []
        accounts, hooks, encodings = connection.accounts, connection.hooks, connection.encodings
        shift_ns = connection.clock_offset_ns or 0
        stamp = 0
        for at, length in entries:
            fields = HEADER.unpack_from(data, at)
            (
                magic, version, flags, seq, host_step, timestamp_ns, _, payload_bytes, source, shard,
                hook_id, encoding_id, kind, dtype, ndim, *_,
            ) = fields  # fmt: skip
            if (
                magic != MAGIC
                or version != VERSION
                or flags > 1
                or payload_bytes != length - HEADER_BYTES
                or seq > wire.MAX_SEQ
                or ndim > MAX_NDIM
                or dtype >= len(DTYPES)
                or kind >= len(Kind)
                or host_step >> 63
                or timestamp_ns >> 63
            ):
                raise WireError(
                    Refusal.MALFORMED, f"the header of a packet of {length} bytes is damaged"
                )
            account = accounts.get((source, shard))
            hook, encoding = hooks.get(hook_id), encodings.get(encoding_id)
            if account is None or hook is None or encoding is None:
                raise WireError(
                    Refusal.NAMES,
                    f"a packet of source {source}, shard {shard}, hook {hook_id}, encoding {encoding_id}, "
                    "one of which was not named",
                )
            _SEQ.pack_into(data, at + _SEQ_AT, seq + account[2])
            if timestamp_ns:
                stamp = min(max(1, timestamp_ns + shift_ns), clock_ns)
                _TIME.pack_into(data, at + _TIME_AT, stamp)
            _IDS.pack_into(data, at + _IDS_AT, hook, encoding)
            found.append((account[0], account[1], seq, hook, kind, at, length, host_step))
        if stamp:
            connection.lag_ns = clock_ns - stamp
        return found

    def _push(self, connection: Connection) -> bool:
        """Put what is waiting on the bus; True: all of it."""
        ledger, bus, waiting = self._ledger, self._bus, connection.waiting
        free_bytes = free_packets = 0
        while waiting:
            batch, host_step = waiting[0], 0
            for place in range(batch.next, len(batch.packets)):
                account, shard, seq, hook, kind, at, length, step = batch.packets[place]
                stream = account.stream
                if stream.has(seq):
                    account.count_duplicate()
                    connection.duplicates += 1
                elif not stream.admit(seq):
                    account.count_expired()
                    connection.expired += 1
                elif length > bus.max_packet:
                    account.count_unpushed()
                    connection.unpushed += 1
                else:
                    # A refused offer is counted by the bus as a dropped packet: ask first.
                    if free_packets < 1 or free_bytes < length:
                        free_bytes, free_packets = bus.room()
                        if free_packets < 1 or free_bytes < length:
                            batch.next = place
                            return False
                    ledger.begin(account, seq)
                    if not bus.push(shard, hook, kind, batch.data[at : at + length]):
                        ledger.undone()
                        batch.next = place
                        return False
                    ledger.done(account, seq)
                    free_bytes -= length
                    free_packets -= 1
                    connection.accepted += 1
                    self.accepted_bytes += length
                    if step > host_step:
                        host_step = step
            bus.passed(host_step)
            waiting.popleft()
            connection.answered = Ack(
                batch.number, 0, connection.accepted, connection.duplicates, connection.expired,
                connection.unpushed, 0,
            )  # fmt: skip
            connection.processed += batch.nbytes
        return True

    def push_waiting(self) -> bool:
        """Put on the bus what had no room; True: nothing is left."""
        done = [self._push(connection) for connection in list(self.connections.values())]
        return all(done)

    def _query(self, connection: Connection, number: int, data: memoryview) -> None:
        answers = []
        for source, shard, seq in wire.parse_query(data):
            account = connection.accounts.get((source, shard))
            if account is None or seq > wire.MAX_SEQ:
                raise WireError(Refusal.NAMES, f"a question about source {source}, shard {shard}")
            answers.append(account[0].stream.has(seq))
        self._send(connection.peer, wire.known(number, answers))

    def _report(self, connection: Connection, report: wire.Report, *, final: bool) -> None:
        self.reports[connection.sender] = report, time.time_ns()
        connection.owes = True
        if final:
            # What it has sent and has no answer to waits for room: its time is over, and it has dropped that.
            self._answer(connection, self._free(), self.outstanding)
            self._send(connection.peer, wire.message(Message.BYE))
            self.forget(connection)

    # Credit and answers.

    def _free(self) -> int:
        """Bytes that a connection may have under way as far as the bus is concerned."""
        return max(self._bus.room()[0], LEAST_CREDIT)

    def _granted(self, connection: Connection, free: int, outstanding: int) -> int:
        """The limit of a connection now; it never falls. outstanding: of all connections."""
        limits = self._limits
        others = outstanding - (connection.limit - connection.processed)
        share = min(limits.window, limits.memory // max(1, len(self.connections)), free)
        share = min(share, limits.memory - others)
        return max(connection.limit, connection.processed + max(0, share))

    def answer(self) -> None:
        """Tell each forwarder what has become of its batches, and what it may send."""
        free, outstanding = self._free(), self.outstanding
        for connection in list(self.connections.values()):
            before = connection.limit
            self._answer(connection, free, outstanding)
            outstanding += connection.limit - before

    def _answer(self, connection: Connection, free: int, outstanding: int) -> None:
        limit = self._granted(connection, free, outstanding)
        said = connection.said
        news = said is None or said.batch != connection.answered.batch
        grown = limit - connection.limit >= min(self._limits.window // 8, 1 << 20)
        if not (news or grown or connection.owes):
            return
        connection.limit = limit
        connection.owes = False
        total = self._ledger.accepted(connection.sender)
        connection.said = replace(connection.answered, total=total, limit=limit)
        self._send(connection.peer, wire.ack(connection.said))

    def leave(self) -> None:
        """Nothing more is accepted; everyone is told."""
        self.leaving = True
        self.push_waiting()
        self.answer()
        for connection in list(self.connections.values()):
            self._send(connection.peer, wire.message(Message.BYE))
            self.forget(connection)

    # Figures.

    @property
    def outstanding(self) -> int:
        """Bytes granted and not on the bus."""
        return sum(one.limit - one.processed for one in self.connections.values())

    @property
    def is_waiting(self) -> bool:
        return any(one.waiting for one in self.connections.values())
