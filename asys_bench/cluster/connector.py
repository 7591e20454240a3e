"""A forwarder's way to its receiver: found, connected to, served until the connection ends, tried again.

A receiver is at `to`, or is looked for in the address book anew at each try. Between tries is a pause that
doubles. A connection is over when the network says so, when the receiver refuses or leaves, or when it has
said nothing for too long. Nothing here waits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import zmq

from asys_bench.cluster import wire
from asys_bench.cluster.book import Book, BookError, Entry
from asys_bench.cluster.keys import PUBLIC, RECEIVER, KeyFileError, KeyPair, read_key
from asys_bench.cluster.link import Link
from asys_bench.cluster.meters import ForwarderMeters
from asys_bench.cluster.options import ForwarderOptions
from asys_bench.cluster.outbox import Outbox
from asys_bench.cluster.session import LinkState, Session, SessionOverError
from asys_bench.cluster.wire import Refusal, WireError

log = logging.getLogger(__name__)
REPORT_S = 1.0
SILENT_S = 15.0
WELCOME_S = 120.0
"""How long a receiver that has let us in may take to answer HELLO: it may have to start its workers first."""
FIN_S = 1.0
_OF_A_BATCH = (Refusal.MALFORMED, Refusal.NAMES, Refusal.TOO_LARGE)
"""Refusals that a packet may be the reason for, each time that it is sent."""


class Origin(Protocol):
    """What a connection says for its forwarder."""

    names: dict[int, str]
    """Of hooks and encodings of the packets so far."""
    writers: set[tuple[int, int]]

    def choose(self, entries: Sequence[Entry]) -> Entry | None:
        """The receiver to take, of those in the book."""

    def hello(self) -> wire.Hello: ...

    def report(self, *, final: bool) -> wire.Report: ...

    def clock_ns(self) -> int:
        """The clock that packets are stamped with."""

    def welcomed(self, welcome: wire.Welcome, address: str) -> None:
        """A receiver has let us in; nothing is sent yet."""


@dataclass
class _Connection:
    """One connection. deadline: until then it must stand. heard: of the receiver, last."""

    session: Session
    address: str
    heard: float
    deadline: float


class Connector:
    """See the module's docstring."""

    def __init__(
        self,
        options: ForwarderOptions,
        keys: KeyPair | None,
        outbox: Outbox,
        meters: ForwarderMeters,
        origin: Origin,
    ) -> None:
        self._options, self._keys = options, keys
        self._outbox, self._meters, self._origin = outbox, meters, origin
        self._link = Link(keys, wire.MAX_JSON_BYTES)
        self._connection: _Connection | None = None
        self._finder: _Finder | None = None
        self._next_try = self._next_report = 0.0
        self._failures = 0

    @property
    def is_connected(self) -> bool:
        """There is a connection, or one is being made."""
        return self._connection is not None

    @property
    def is_welcomed(self) -> bool:
        return self._connection is not None and self._connection.session.welcomed

    @property
    def is_reachable(self) -> bool:
        """A receiver is there, which may still have to start its workers before it answers."""
        return self._connection is not None and self._link.state is LinkState.UP

    @property
    def credit(self) -> int:
        """Bytes that may be sent now."""
        return self._connection.session.credit if self._connection is not None else 0

    def silent_s(self, now: float) -> float:
        """Since the receiver has said something, or a try to connect began; infinite between tries."""
        return now - self._connection.heard if self._connection is not None else float("inf")

    def work(self, now: float) -> None:
        """Everything that does not wait: a try to connect, or answers and batches."""
        if self._connection is None:
            self._try_to_connect(now)
        else:
            self._serve(self._connection, now)

    def wait(self, seconds: float) -> None:
        """Until there is something to read."""
        self._link.wait(seconds)

    def say_goodbye(self, time_left_s: float) -> None:
        """The last account, to a receiver that is there; waits a moment for its answer."""
        connection = self._connection
        if connection is None or not connection.session.welcomed:
            return
        connection.session.report(self._origin.report(final=True))
        until = time.monotonic() + min(FIN_S, max(0.05, time_left_s / 2))
        with suppress(SessionOverError, WireError):
            while time.monotonic() < until and self._link.look() is LinkState.UP:
                self._link.wait(0.05)
                while (data := self._link.receive()) is not None:
                    connection.session.receive(data)

    def close(self) -> None:
        self._link.close()

    # To a connection.

    def _try_to_connect(self, now: float) -> None:
        if now < self._next_try:
            return
        if self._options.to is not None:
            try:
                self._connect(now, self._options.to, self._key_of_receiver())
            except KeyFileError as error:
                self._failed(now, str(error))
            return
        if self._finder is None:
            assert self._options.book is not None
            self._finder = _Finder(self._options.book, self._origin.choose)
        if self._finder.is_running:
            return
        finder, self._finder = self._finder, None
        if finder.entry is None:
            self._failed(now, finder.problem)
        else:
            key = self._options.receiver_key or finder.entry.public_key
            self._connect(now, finder.entry.address, key)

    def _key_of_receiver(self) -> str:
        """Raises KeyFileError."""
        key = self._options.receiver_key or ""
        if not key and self._keys is not None:
            key = read_key(Path(self._options.keys or "") / f"{RECEIVER}{PUBLIC}")
        return key

    def _connect(self, now: float, address: str, key: str) -> None:
        try:
            self._link.connect(address, key)
        except zmq.ZMQError as error:
            self._failed(now, f"{address}: {error}")
            return
        session = Session(
            self._outbox, self._link.send, self._link.send_view, self._origin.clock_ns,
            lambda welcome: self._origin.welcomed(welcome, address),
        )  # fmt: skip
        self._connection = _Connection(session, address, now, now + self._options.connect_timeout_s)
        session.hello(self._meters.connection(), self._origin.hello())

    def _failed(self, now: float, why: str) -> None:
        self._failures += 1
        pause = min(self._options.backoff_max_s, 0.05 * 2.0 ** min(self._failures, 12))
        self._next_try = now + pause * random.uniform(0.5, 1.0)
        if self._failures in (1, 4) or self._failures % 64 == 0:
            log.warning("no receiver (%d tries): %s", self._failures, why)

    # In a connection.

    def _serve(self, connection: _Connection, now: float) -> None:
        session, address = connection.session, connection.address
        state = self._link.look()
        if state is LinkState.KEY_REFUSED:
            self._meters.refuse(Refusal.KEY)
            self._lost(now, f"{address} does not let this client's key in, or has another key")
            return
        if why := self._hear(connection, now):
            self._lost(now, why)
            return
        silent_s = now - connection.heard
        if state is LinkState.DOWN:
            self._lost(now, f"the connection to {address} is gone")
        elif state is LinkState.CONNECTING and now > connection.deadline:
            self._lost(now, f"{address} does not answer")
        elif silent_s > (SILENT_S if session.welcomed else WELCOME_S):
            self._lost(now, f"{address} has said nothing for {silent_s:.0f} s")
        elif session.welcomed:
            before = session.sent_bytes
            session.send(self._origin.names, self._origin.writers)
            self._meters.sent_bytes(session.sent_bytes - before)
            if now >= self._next_report and session.report(self._origin.report(final=False)):
                self._next_report = now + REPORT_S

    def _hear(self, connection: _Connection, now: float) -> str:
        """What the receiver has said; why the connection is over, "" where it is not."""
        session, address = connection.session, connection.address
        try:
            while (data := self._link.receive()) is not None:
                connection.heard = now
                session.receive(data)
        except SessionOverError as over:
            if over.reason is None:
                return f"{address}: {over}"
            self._meters.refuse(over.reason)
            if over.reason in _OF_A_BATCH:
                self._outbox.refused()
            return f"{address} refuses ({over.reason}): {over}"
        except WireError as error:
            self._meters.refuse(error.reason)
            return f"{address} answers what it should not: {error}"
        return ""

    def _lost(self, now: float, why: str) -> None:
        connection, self._connection = self._connection, None
        self._link.disconnect()
        self._outbox.disconnected()
        if connection is not None and connection.session.answers:
            self._failures = 0
        self._failed(now, why)


class _Finder:
    """Reads the address book in a thread: a store may take seconds, and a heartbeat not."""

    def __init__(self, place: str, choose: Callable[[Sequence[Entry]], Entry | None]) -> None:
        self.entry: Entry | None = None
        self.problem = f"{place} has no receiver that takes these hooks"
        self._place, self._choose = place, choose
        self._thread = threading.Thread(target=self._find, name="asys-book", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def _find(self) -> None:
        try:
            self.entry = self._choose(Book.open(self._place).entries())
        except (BookError, ValueError, OSError) as error:
            self.problem = str(error)
