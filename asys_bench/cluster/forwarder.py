"""The `forwarder` sink: sends the packets of its group to a receiver on another node.

It never holds its group up for long: packets are copied, leases are kept until the receiver has answered,
but for `hold_s` at most, and what finds no room is dropped and counted. A receiver that cannot be reached
costs the run nothing but its packets. See `outbox` for the account, which is in the worker's slot of the
stats page and in `cluster/<worker>.json` of the run's folder::

    remote_taken = remote_acked + sum(remote_dropped{reason}) + remote_in_flight

A forwarder that was killed is started again like any worker: what it had not acknowledged on the bus is
delivered again, and what it had is settled with the receiver's own count (`Outbox.welcome`).

It has one worker; another entry of `sinks` with other hooks is another forwarder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from asys_bench.cluster import wire
from asys_bench.cluster.accounts import FORWARDER_SCHEMA
from asys_bench.cluster.book import Book, BookError, Entry
from asys_bench.cluster.forwarder_options import ForwarderOptions
from asys_bench.cluster.keys import (
    PUBLIC,
    RECEIVER,
    KeyFileError,
    KeyPair,
    read_key,
    read_pair,
    zmq_problem,
)
from asys_bench.cluster.ledger import FOLDER
from asys_bench.cluster.outbox import Counts, Dropped, Outbox
from asys_bench.cluster.session import LinkState, Session, SessionOverError
from asys_bench.cluster.wire import Refusal, WireError
from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.names import LABELS, file_slug, matches
from asys_bench.contracts.run_files import read_run_file
from asys_bench.contracts.sink import BaseSink, SinkContext, SinkOptions, SinkPlugin
from asys_bench.system.allocator import keep_freed_memory
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import make_folders, read_json
from asys_bench.system.launcher import LocalRanks, job_name

if TYPE_CHECKING:
    from asys_bench.cluster.link import Link

log = logging.getLogger(__name__)
REPORT_S, WRITE_S = 1.0, 2.0
SILENT_S = 15.0
WELCOME_S = 120.0
"""How long a receiver that has let us in may take to answer HELLO: it may have to start its workers first."""
FIN_S = 1.0
_OF_A_BATCH = (Refusal.MALFORMED, Refusal.NAMES, Refusal.TOO_LARGE)
"""Refusals that a packet may be the reason for, each time that it is sent."""
MOST_PACKETS = 1024


def usual_policy(
    config: MasterConfig, group: str, hooks: Collection[str]
) -> Literal["drop", "sample"]:
    """`on_slow` where it is not given: what another sink keeps of all `hooks` need not be sent."""
    for name, sink in config.enabled_sinks.items():
        if name == group or sink.kind == plugin.name:
            continue
        takes_all = all(any(matches(hook, glob) for glob in sink.hooks) for hook in hooks)
        if takes_all and sink.resolved_delivery() is Delivery.AT_LEAST_ONCE:
            return "drop"
    return "sample"


class ForwarderWorker(BaseSink):
    """See the module docstring."""

    keeps_leases = True

    def __init__(self, options: ForwarderOptions) -> None:
        self._options = options
        mib = 1 << 20
        self._batch_bytes = int(options.batch_mib * mib)
        self._outbox = Outbox(int(options.max_mib_in_flight * mib), self._batch_bytes)
        self._draining = False
        self._packet_bytes = 0.0
        self._names: dict[int, str] = {}
        """Of hooks and encodings of the packets so far."""
        self._writers: set[tuple[int, int]] = set()

    # Start.

    def open(self, context: SinkContext) -> None:
        """Take up the account of an earlier incarnation, and begin to connect."""
        self._context, options = context, self._options
        keep_freed_memory()
        self._folder = context.run_dir / FOLDER
        make_folders(self._folder, below=context.run_dir)
        self._file = self._folder / f"{file_slug(context.name)}.json"
        self._meters = _Meters(context)
        document = read_run_file(context.run_dir)
        config = MasterConfig.model_validate(context.config)
        globs = config.sinks[context.group].hooks
        side = [str(name) for name in document.get("side_streams", ())]
        self._streams = [
            one
            for one in document.get("streams", ())
            if one.get("name") == LABELS
            or any(matches(str(one.get("name")), glob) for glob in globs)
        ]
        self._side = tuple(one["name"] for one in self._streams if one["name"] in side)
        self._mine = {str(one["name"]) for one in self._streams}
        self._document = document
        policy = options.on_slow or usual_policy(
            config, context.group, self._mine - set(self._side)
        )
        self._drops = policy == "drop"
        self._job = options.job or (job_name() or config.run.id or config.run.name)[:256]
        self._keys: KeyPair | None = None
        if options.keys is not None:
            self._keys = read_pair(options.keys, options.client)
        from asys_bench.cluster.link import Link

        self._link: Link = Link(self._keys, wire.MAX_JSON_BYTES)
        self._connection: _Connection | None = None
        self._finder: _Finder | None = None
        self._receiver: dict[str, Any] | None = None
        self._elsewhere = 0
        self._next_try = 0.0
        self._failures = 0
        self._next_report = self._next_write = 0.0
        self._refused: dict[str, int] = self._meters.refused()
        if context.incarnation:
            self._resume()
        self._publish()

    def _resume(self) -> None:
        """What the incarnation before had counted, and to whom it had last sent."""
        assert self._context.account is not None
        delivered = self._context.account().group(self._context.group).delivered
        self._outbox.resume(self._meters.counts(), delivered)
        try:
            document = read_json(self._file, below=self._context.run_dir)
            if document.get("attempt") == self._context.attempt and document.get("receiver"):
                self._receiver = dict(document["receiver"])
                self._elsewhere = int(self._receiver.get("elsewhere", 0))
        except (OSError, ValueError, TypeError) as error:
            log.warning("what the forwarder before had written is not known: %s", error)

    # The worker's loop.

    @property
    def wants_packets(self) -> bool:  # type: ignore[override]
        most = int(self._options.max_mib_in_flight * (1 << 20))
        return (
            self._drops or self._draining or self._outbox.room >= min(2 * self._batch_bytes, most)
        )

    @property
    def linger_s(self) -> float:  # type: ignore[override]
        """Short while answers are awaited, which a pull does not hear."""
        return 0.002 if self._connection is not None and not self._outbox.is_empty else 0.05

    @property
    def max_packets(self) -> int:  # type: ignore[override]
        """About two batches of packets as they were so far; under `sample` at most half of the room, because
        what is pulled and finds none is dropped."""
        if not self._packet_bytes:
            return 1
        nbytes = 2 * self._batch_bytes
        if not (self._drops or self._draining):
            nbytes = min(nbytes, self._outbox.room // 2)
        return max(1, min(MOST_PACKETS, int(nbytes / self._packet_bytes)))

    def consume(self, lease: Lease) -> None:
        """Copy the lease; it is acknowledged when the receiver has answered, or `hold_s` later."""
        now = time.monotonic()
        used = {packet.hook_id for packet in lease} | {packet.encoding_id for packet in lease}
        for number in used - self._names.keys():
            self._names[number] = self._context.name_of(number)
        self._writers |= {(packet.source, packet.shard) for packet in lease}
        mean = sum(packet.payload.nbytes for packet in lease) / len(lease) + 128
        self._packet_bytes = (
            mean if not self._packet_bytes else 0.8 * self._packet_bytes + 0.2 * mean
        )
        self._outbox.offer(lease, now)
        self._work(now)

    def idle(self) -> None:
        if not self.wants_packets:
            self._link.wait(0.02)
        self._work(time.monotonic())

    def close(self) -> None:
        """Send what is left and wait for answers, as long as the drain allows."""
        self._draining = True
        reserve = min(1.0, self._context.time_left_s() / 4)
        started = time.monotonic()
        while not self._outbox.is_empty or self._outbox.counts.in_flight > 0:
            left = self._context.time_left_s()
            if left < reserve or (
                left == float("inf") and time.monotonic() - started > self._options.wait_s
            ):
                break
            self._context.heartbeat()
            self._work(time.monotonic())
            self._link.wait(0.01)
        reason = Dropped.CLOSED if self._connection is not None else Dropped.UNREACHABLE
        self._outbox.close(reason)
        self._publish()
        self._say_goodbye()
        self._write(final=True)
        self._link.close()

    def _work(self, now: float) -> None:
        """Everything that does not wait: answers, batches, time."""
        self._outbox.hold(now - self._options.hold_s)
        if self._connection is None:
            self._try_to_connect(now)
        else:
            self._serve(self._connection, now)
        if self._connection is None or not self._connection.session.welcomed:
            self._outbox.expire(now - self._options.wait_s)
        if now >= self._next_write:
            self._next_write = now + WRITE_S
            self._write(final=False)
        self._publish()

    # The connection.

    def _try_to_connect(self, now: float) -> None:
        if now < self._next_try:
            return
        options = self._options
        if options.to is not None:
            key = options.receiver_key or ""
            if not key and self._keys is not None:
                try:
                    key = read_key(Path(options.keys or "") / f"{RECEIVER}{PUBLIC}")
                except KeyFileError as error:
                    self._failed(now, str(error))
                    return
            self._connect(now, options.to, key)
            return
        if self._finder is None:
            assert options.book is not None
            self._finder = _Finder(options.book, self._choose)
        if self._finder.is_running:
            return
        finder, self._finder = self._finder, None
        if finder.entry is None:
            self._failed(now, finder.problem)
        else:
            self._connect(
                now, finder.entry.address, options.receiver_key or finder.entry.public_key
            )

    def _choose(self, entries: Sequence[Entry]) -> Entry | None:
        wanted = self._mine - set(self._side)
        fitting = [
            one
            for one in entries
            if matches(one.name, self._options.receiver)
            and (not one.job or one.job == self._job)
            and all(any(matches(hook, glob) for glob in one.hooks) for hook in wanted)
        ]
        if not fitting:
            return None
        exact = [one for one in fitting if one.hooks != ("*",)] or fitting
        digest = hashlib.sha256(f"{self._context.run_id}/{self._context.name}".encode()).digest()
        return exact[int.from_bytes(digest[:4], "little") % len(exact)]

    def _connect(self, now: float, address: str, key: str) -> None:
        import zmq

        try:
            self._link.connect(address, key)
        except zmq.ZMQError as error:
            self._failed(now, f"{address}: {error}")
            return
        session = Session(
            self._outbox, self._link.send, self._link.send_view, self._clock_ns, self._welcome
        )
        self._connection = _Connection(session, address, now, now + self._options.connect_timeout_s)
        session.hello(self._meters.connection(), self._hello())

    def _hello(self) -> wire.Hello:
        context, document = self._context, self._document
        mine = {number: name for number, name in self._interned() if name in self._mine}
        return wire.Hello(
            job=self._job,
            run_id=context.run_id,
            attempt=context.attempt,
            worker=context.name,
            node=os.uname().nodename,
            ranks=tuple(self._writers),
            names={**mine, **self._names},
            streams=tuple(
                {k: v for k, v in one.items() if k in wire.STREAM_FIELDS} for one in self._streams
            ),
            side=self._side,
            step_unit=str(document.get("step_unit", "step")),
            first_packet=context.first_packet,
            world=max(_world(), int(document.get("ranks") or 1)),
        )

    def _clock_ns(self) -> int:
        """The clock that packets are stamped with."""
        return max(0, time.monotonic_ns() + self._context.clock_shift_ns)

    def _interned(self) -> Iterable[tuple[int, str]]:
        return ((number, name) for number, name in enumerate(self._context.names()))

    def _failed(self, now: float, why: str) -> None:
        self._failures += 1
        pause = min(self._options.backoff_max_s, 0.05 * 2.0 ** min(self._failures, 12))
        self._next_try = now + pause * random.uniform(0.5, 1.0)
        if self._failures in (1, 4) or self._failures % 64 == 0:
            log.warning("no receiver (%d tries): %s", self._failures, why)

    def _lost(self, now: float, why: str) -> None:
        connection, self._connection = self._connection, None
        self._link.disconnect()
        self._outbox.disconnected()
        if connection is not None and connection.session.answers:
            self._failures = 0
        self._failed(now, why)

    def _serve(self, connection: _Connection, now: float) -> None:
        session, address = connection.session, connection.address
        state = self._link.look()
        if state is LinkState.KEY_REFUSED:
            self._refuse(Refusal.KEY)
            self._lost(now, f"{address} does not let this client's key in, or has another key")
            return
        try:
            while (data := self._link.receive()) is not None:
                connection.heard = now
                session.receive(data)
        except SessionOverError as over:
            if over.reason is not None:
                self._refuse(over.reason)
            if over.reason in _OF_A_BATCH:
                self._outbox.refused()
            self._lost(
                now,
                f"{address} refuses ({over.reason}): {over}"
                if over.reason
                else f"{address}: {over}",
            )
            return
        except WireError as error:
            self._refuse(error.reason)
            self._lost(now, f"{address} answers what it should not: {error}")
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
            session.send(self._names, self._writers)
            self._meters.sent_bytes(session.sent_bytes - before)
            if now >= self._next_report and session.report(self._report(final=False)):
                self._next_report = now + REPORT_S

    def _welcome(self, welcome: wire.Welcome) -> None:
        assert self._connection is not None
        before = self._receiver
        if before is not None and before.get("id") != welcome.id:
            log.warning(
                "another receiver than before: packets without an answer are sent to it as well"
            )
            self._elsewhere = self._outbox.counts.acked
        self._receiver = {
            "name": welcome.name,
            "id": welcome.id,
            "address": self._connection.address,
            "elsewhere": self._elsewhere,
        }
        self._outbox.max_message, self._outbox.max_packet = welcome.max_message, welcome.max_packet
        skip = set(welcome.skip)
        self._outbox.skip = {number for number, name in self._interned() if name in skip}
        self._outbox.welcome(welcome.accepted, self._elsewhere)
        log.info("sending to %s at %s", welcome.name, self._connection.address)
        self._write(final=False)

    def _say_goodbye(self) -> None:
        connection = self._connection
        if connection is None or not connection.session.welcomed:
            return
        connection.session.report(self._report(final=True))
        until = time.monotonic() + min(FIN_S, max(0.05, self._context.time_left_s() / 2))
        with suppress(SessionOverError, WireError):
            while time.monotonic() < until and self._link.look() is LinkState.UP:
                self._link.wait(0.05)
                while (data := self._link.receive()) is not None:
                    connection.session.receive(data)

    # The account.

    def _report(self, *, final: bool) -> wire.Report:
        counts = self._outbox.counts
        return wire.Report(
            counts.taken, counts.acked, max(0, counts.in_flight), dict(counts.dropped), final
        )

    def _refuse(self, reason: Refusal) -> None:
        self._refused[reason] = self._refused.get(reason, 0) + 1
        self._meters.refuse(reason)

    def _publish(self) -> None:
        session = self._connection.session if self._connection is not None else None
        outbox = self._outbox
        oldest = outbox.oldest
        self._meters.show(
            outbox.counts,
            in_flight_bytes=outbox.bytes,
            credit=session.credit if session is not None else 0,
            connected=session is not None and session.welcomed,
            ack_s=time.monotonic() - oldest if oldest is not None else 0.0,
            resent=outbox.resent,
        )

    def _write(self, *, final: bool) -> None:
        context, counts = self._context, self._outbox.counts
        document = {
            "schema": FORWARDER_SCHEMA,
            "run_id": context.run_id,
            "attempt": context.attempt,
            "worker": context.name,
            "group": context.group,
            "job": self._job,
            "unix_ns": time.time_ns(),
            "final": final,
            "receiver": self._receiver,
            "hooks": sorted(self._mine),
            "taken": counts.taken,
            "acked": counts.acked,
            "dropped": counts.dropped,
            "in_flight": counts.in_flight,
            "in_flight_bytes": self._outbox.bytes,
            "resent": self._outbox.resent,
            "connections": self._meters.connections,
            "refused": {str(reason): count for reason, count in self._refused.items() if count},
        }
        try:
            replace_file(self._file, json.dumps(document).encode(), sync=False)
        except OSError as error:
            log.warning("%s is not written: %s", self._file, error)


@dataclass
class _Connection:
    """One connection. deadline: until then it must stand. heard: of the receiver, last."""

    session: Session
    address: str
    heard: float
    deadline: float


class _Finder:
    """Reads the address book in a thread: a store may take seconds, and a heartbeat not."""

    def __init__(self, place: str, choose: Any) -> None:
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


class _Meters:
    """The forwarder's counters in its slot. They outlive it."""

    def __init__(self, context: SinkContext) -> None:
        slot = context.slot
        self._taken, self._acked = slot.counter("remote_taken"), slot.counter("remote_acked")
        self._dropped = {
            reason: slot.counter("remote_dropped", reason=reason) for reason in Dropped
        }
        self._sent, self._resent = slot.counter("remote_sent_bytes"), slot.counter("remote_resent")
        self._connections = slot.counter("remote_connections")
        self._refused = {
            reason: slot.counter("remote_refused", reason=reason) for reason in Refusal
        }
        self._gauges = {
            name: slot.gauge(f"remote_{name}")
            for name in ("in_flight", "in_flight_bytes", "credit_bytes", "connected", "ack_s")
        }
        self._resent_before = self._resent.value

    def counts(self) -> Counts:
        """As the incarnation before has left them."""
        return Counts(
            self._taken.value,
            self._acked.value,
            {str(reason): counter.value for reason, counter in self._dropped.items()},
        )

    def refused(self) -> dict[str, int]:
        return {reason: counter.value for reason, counter in self._refused.items()}

    def refuse(self, reason: Refusal) -> None:
        self._refused[reason].add()

    def connection(self) -> int:
        """The number of the next connection."""
        self._connections.add()
        return self._connections.value

    @property
    def connections(self) -> int:
        return self._connections.value

    def sent_bytes(self, nbytes: int) -> None:
        self._sent.add(nbytes)

    def show(
        self, counts: Counts, *, in_flight_bytes: int, credit: int, connected: bool, ack_s: float, resent: int
    ) -> None:  # fmt: skip
        self._taken.set(counts.taken)
        self._acked.set(counts.acked)
        for reason, counter in self._dropped.items():
            counter.set(counts.dropped[reason])
        self._resent.set(self._resent_before + resent)
        self._gauges["in_flight"].set(counts.in_flight)
        self._gauges["in_flight_bytes"].set(in_flight_bytes)
        self._gauges["credit_bytes"].set(credit)
        self._gauges["connected"].set(int(connected))
        self._gauges["ack_s"].set(ack_s)


def _world() -> int:
    """Ranks of the whole job, where a launcher says it."""
    ranks = LocalRanks.from_environment()
    return min(ranks.world_size, wire.MAX_STREAMS) if ranks is not None else 1


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, ForwarderOptions)
    return ForwarderWorker(options)


plugin = SinkPlugin(
    name="forwarder",
    summary="sends packets to a receiver on another node",
    options=ForwarderOptions,
    build=_build,
    default_delivery=Delivery.AT_LEAST_ONCE,
    preload=("zmq",),
    takes_labels=True,
    unavailable=zmq_problem,
)
