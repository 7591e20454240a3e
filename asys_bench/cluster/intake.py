"""The receiver's side of every connection: messages and their order, who is refused, what is granted.

A message is checked as a whole before anything of it is pushed; a peer that sends what it should not is
refused by name and forgotten, and nothing that it sends later is looked at. Who may send is `admission`'s to
say. Packets go on the bus in the order in which they came, each written into the ledger, and wait here while
the bus has no room (`arrivals`).

Credit. A forwarder may have as many bytes of batches under way as it was granted: what the fullest shard of
the bus has room for, at most `window` for one connection, and at most `memory` for all of them together,
whatever they do. A batch beyond the grant is refused.

No socket and no bus here, so that tests drive it with a list.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from asys_bench.cluster import wire
from asys_bench.cluster.admission import Admission, Limits
from asys_bench.cluster.arrivals import Bus, Connection, Pusher, checked
from asys_bench.cluster.ledger import Ledger, LedgerError, SenderKey
from asys_bench.cluster.wire import Message, Refusal, WireError

log = logging.getLogger(__name__)
SILENT_S = 15.0
"""A peer that has said nothing for so long is gone; forwarders report every second."""
REFUSED_REMEMBERED = 4096
LEAST_CREDIT = 8 << 20
"""Bytes that a connection may have under way while the bus has no room: they wait here."""


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
        self._clock = clock
        self._admission = Admission(ledger, bus, limits, name=name, hooks=hooks, job=job)
        self._pusher = Pusher(ledger, bus)
        self.connections: dict[bytes, Connection] = {}
        self._of_sender: dict[SenderKey, Connection] = {}
        self.refused: dict[str, int] = {}
        self._gone: deque[bytes] = deque(maxlen=REFUSED_REMEMBERED)
        self._gone_set: set[bytes] = set()
        self.opened = 0
        self.reports: dict[SenderKey, tuple[wire.Report, int]] = {}
        self.leaving = False

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
                self._admission.add_names(connection, told.names)
                self._admission.add_writers(connection, told.ranks)
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

    def excuse(self, seconds: float) -> None:
        """Nobody has read messages for so long: a silence of that time is not the peers'."""
        now = self._clock()
        for connection in self.connections.values():
            connection.heard = min(now, connection.heard + seconds)

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

    def _hello(self, peer: bytes, generation: int, hello: wire.Hello) -> None:
        if self.leaving:
            raise WireError(Refusal.BUSY, f"{self._admission.name} is leaving")
        self._admission.check(hello)
        self._replace_earlier(generation, hello)
        others = self.connections.values()
        connection, welcome = self._admission.welcome(
            peer, generation, hello, others, self._clock()
        )
        self.connections[peer] = self._of_sender[connection.sender] = connection
        self.opened += 1
        connection.limit = self._granted(connection, self._free(), self.outstanding)
        log.info("%s/%s on %s: welcome", hello.run_id, hello.worker, hello.node)
        self._send(peer, wire.as_json(Message.WELCOME, 0, replace(welcome, limit=connection.limit)))

    def _replace_earlier(self, generation: int, hello: wire.Hello) -> None:
        """Refuse connections that this one shows to be over. Raises WireError: it is older than one."""
        sender = SenderKey(hello.run_id, hello.attempt, hello.worker)
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
        arrival = checked(connection, number, data, self._bus.max_packet, clock_ns)
        connection.last = number
        connection.received += data.nbytes
        connection.waiting.append(arrival)
        self._pusher.push(connection)

    def push_waiting(self) -> bool:
        """Put on the bus what had no room; True: nothing is left."""
        done = [self._pusher.push(connection) for connection in list(self.connections.values())]
        return all(done)

    def _query(self, connection: Connection, number: int, data: memoryview) -> None:
        answers = []
        for source, shard, seq in wire.parse_query(data):
            writer = connection.writers.get((source, shard))
            if writer is None or seq > wire.MAX_SEQ:
                raise WireError(Refusal.NAMES, f"a question about source {source}, shard {shard}")
            answers.append(writer.account.stream.has(seq))
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
    def job(self) -> str:
        return self._admission.job

    @property
    def began(self) -> bool:
        """The receiver has begun its run."""
        return self._admission.began

    @property
    def accepted_bytes(self) -> int:
        """Of packets that were put on the bus, by this process."""
        return self._pusher.nbytes

    @property
    def outstanding(self) -> int:
        """Bytes granted and not on the bus."""
        return sum(one.limit - one.processed for one in self.connections.values())

    @property
    def is_waiting(self) -> bool:
        return any(one.waiting for one in self.connections.values())
