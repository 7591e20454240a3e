"""One connection of a forwarder: HELLO, what is sent within the credit, and what the answers mean.

No socket here: `send` and `send_view` are the network's, and tests give their own.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from asys_bench.cluster import wire
from asys_bench.cluster.outbox import Outbox
from asys_bench.cluster.wire import Message, Refusal, WireError


class LinkState(StrEnum):
    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    """The other side speaks ZeroMQ and has let us in."""
    KEY_REFUSED = "key refused"
    """Its list of keys has ours not, or it is another receiver than its key says."""


class SessionOverError(Exception):
    """The connection is over in order; reason: why the receiver refuses, None where it says good-bye."""

    def __init__(self, reason: Refusal | None, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Session:
    """See the module's docstring.

    outbox: what there is to send; it outlives the connection. send: a message, False where there is no room
    now. send_view: a message whose memory must not change until the tracker that this returns is done; None
    where there is no room. clock_ns: the clock that packets are stamped with. welcomed: called with the
    WELCOME, before anything is sent.
    """

    def __init__(
        self,
        outbox: Outbox,
        send: Callable[[bytes], bool],
        send_view: Callable[[memoryview], Any],
        clock_ns: Callable[[], int],
        welcomed: Callable[[wire.Welcome], None],
    ) -> None:
        self._outbox, self._send, self._send_view = outbox, send, send_view
        self._clock_ns, self._on_welcome = clock_ns, welcomed
        self.welcomed = False
        self.sent_bytes = 0
        self._limit = self._last = self._acked = self._queries = self._asked = 0
        self._in_question = 0
        self._told: set[int] = set()
        self._ranks: set[tuple[int, int]] = set()

    @property
    def answers(self) -> int:
        """Batches that the receiver is done with."""
        return self._acked

    @property
    def credit(self) -> int:
        """Bytes that may be sent now."""
        return self._limit - self.sent_bytes

    def hello(self, number: int, hello: wire.Hello) -> None:
        """number: connections of this forwarder so far, this one included."""
        self._told, self._ranks = set(hello.names), set(hello.ranks)
        self._send(wire.as_json(Message.HELLO, number, hello))

    def receive(self, data: memoryview) -> None:
        """A message of the receiver.

        Raises:
            SessionOverError: there is nothing more to come. WireError: it is none that fits.
        """
        kind, number = wire.head(data)
        if kind is Message.REFUSED:
            raise SessionOverError(*wire.parse_refused(data))
        if kind is Message.BYE:
            raise SessionOverError(None, "it is leaving")
        if kind is Message.WELCOME and not self.welcomed:
            welcome = wire.parse(wire.Welcome, data)
            self.welcomed, self._limit = True, welcome.limit
            self._on_welcome(welcome)
        elif kind is Message.ACK and self.welcomed:
            ack = wire.parse_ack(number, data)
            if not self._acked <= ack.batch <= self._last:
                raise WireError(
                    Refusal.MALFORMED, f"an answer to batch {ack.batch} of {self._last}"
                )
            self._acked, self._limit = ack.batch, max(self._limit, ack.limit)
            self._outbox.acknowledge(ack)
        elif kind is Message.KNOWN and self._asked == number != 0:
            answers = wire.parse_known(data, self._in_question)
            self._asked = 0
            self._outbox.answered(answers)
        else:
            raise WireError(Refusal.MALFORMED, f"{kind.name} was not expected")

    def send(self, names: dict[int, str], ranks: set[tuple[int, int]]) -> None:
        """Whatever can be sent now. names, ranks: all that packets of the outbox refer to."""
        if not self.welcomed:
            return
        new, further = names.keys() - self._told, ranks - self._ranks
        if new or further:
            told = wire.Names({number: names[number] for number in new}, tuple(further))
            if not self._send(wire.as_json(Message.NAMES, 0, told)):
                return
            self._told |= new
            self._ranks |= further
        if self._outbox.is_doubtful:
            self._ask()
            return
        while (batch := self._outbox.next(self.credit)) is not None:
            tracker = self._send_view(batch.message(self._last + 1, self._clock_ns()))
            if tracker is None:
                self._outbox.not_sent(batch)
                return
            batch.tracker = tracker
            self._last += 1
            self.sent_bytes += batch.nbytes

    def _ask(self) -> None:
        """About what an earlier connection left without an answer; one question at a time."""
        if self._asked:
            return
        keys = self._outbox.in_question()
        if self._send(wire.query(self._queries + 1, keys)):
            self._queries += 1
            self._asked, self._in_question = self._queries, len(keys)

    def report(self, report: wire.Report) -> bool:
        """False: there is no room now."""
        kind = Message.FIN if report.final else Message.REPORT
        return self._send(wire.as_json(kind, 0, report))
