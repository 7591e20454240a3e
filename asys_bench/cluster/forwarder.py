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
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from asys_bench.cluster import wire
from asys_bench.cluster.accounts import FORWARDER_SCHEMA
from asys_bench.cluster.book import Entry
from asys_bench.cluster.keys import KeyPair, read_pair, zmq_problem
from asys_bench.cluster.ledger import FOLDER
from asys_bench.cluster.meters import ForwarderMeters
from asys_bench.cluster.options import ForwarderOptions
from asys_bench.cluster.outbox import Dropped, Outbox
from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.names import LABELS, file_slug, matches
from asys_bench.contracts.packet import HEADERS
from asys_bench.contracts.run_files import read_run_file
from asys_bench.contracts.sink import BaseSink, SinkContext, SinkOptions, SinkPlugin
from asys_bench.system.allocator import keep_freed_memory
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import make_folders, read_json
from asys_bench.system.launcher import LocalRanks, job_name

if TYPE_CHECKING:
    from asys_bench.cluster.connector import Connector

log = logging.getLogger(__name__)
WRITE_S = 2.0
MOST_PACKETS = 1024
SHORTEST_S, LONGEST_S, WAITED_SHARE = 0.002, 0.05, 1 / 8
"""A pull waits for this share of the time for which an answer has been waited for."""
HEADERS_SHARE = 1 / 64
"""What a batch may have beyond `batch_mib`: four packets of 1 MiB fill one of 4, and have headers."""


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
        self._most_bytes = int(options.max_mib_in_flight * mib)
        self._batch_bytes = int(options.batch_mib * mib * (1 + HEADERS_SHARE))
        self._outbox = Outbox(self._most_bytes, self._batch_bytes)
        self._draining = False
        self.names: dict[int, str] = {}
        self.writers: set[tuple[int, int]] = set()

    # Start.

    def open(self, context: SinkContext) -> None:
        """Take up the account of an earlier incarnation, and begin to connect."""
        self._context, options = context, self._options
        keep_freed_memory()
        self._folder = context.run_dir / FOLDER
        make_folders(self._folder, below=context.run_dir)
        self._file = self._folder / f"{file_slug(context.name)}.json"
        self._meters = ForwarderMeters(context.slot)
        config = MasterConfig.model_validate(context.config)
        self._document = read_run_file(context.run_dir)
        self._read_streams(config)
        policy = options.on_slow or usual_policy(
            config, context.group, self._mine - set(self._side)
        )
        self._drops = policy == "drop"
        self._job = options.job or (job_name() or config.run.id or config.run.name)[:256]
        keys: KeyPair | None = None
        if options.keys is not None:
            keys = read_pair(options.keys, options.client)
        from asys_bench.cluster.connector import Connector

        self._connector: Connector = Connector(options, keys, self._outbox, self._meters, self)
        self._receiver: dict[str, Any] | None = None
        self._elsewhere = 0
        self._next_write = 0.0
        if context.incarnation:
            self._resume()
        self._publish(time.monotonic())

    def _read_streams(self, config: MasterConfig) -> None:
        """What this forwarder sends of the run's streams."""
        globs = config.sinks[self._context.group].hooks
        side = [str(name) for name in self._document.get("side_streams", ())]
        self._streams = [
            one
            for one in self._document.get("streams", ())
            if one.get("name") == LABELS
            or any(matches(str(one.get("name")), glob) for glob in globs)
        ]
        self._side = tuple(one["name"] for one in self._streams if one["name"] in side)
        self._mine = {str(one["name"]) for one in self._streams}

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
        least = min(2 * self._batch_bytes, self._most_bytes)
        return self._drops or self._draining or self._outbox.room >= least

    @property
    def linger_s(self) -> float:  # type: ignore[override]
        """Short while answers come, which a pull does not hear; the longer none has come, the longer: a
        network that has gone silent is not asked 500 times a second."""
        oldest = self._outbox.oldest
        if oldest is None:
            return LONGEST_S
        now = time.monotonic()
        waited_s = min(now - oldest, self._connector.silent_s(now))
        return min(LONGEST_S, max(SHORTEST_S, waited_s * WAITED_SHARE))

    @property
    def max_packets(self) -> int:  # type: ignore[override]
        """Two full batches of packets as they were so far; under `sample` half of the room at most,
        because what is pulled and finds none is dropped."""
        outbox = self._outbox
        if not outbox.packet_bytes:
            return 1
        batch = max(1, int(outbox.batch_room / outbox.packet_bytes))
        most = 2 * batch
        if not (self._drops or self._draining):
            most = min(most, int(outbox.room / 2 / outbox.packet_bytes))
            most -= most % batch if most > batch else 0
        return max(1, min(MOST_PACKETS, most))

    def consume(self, lease: Lease) -> None:
        """Copy the lease; it is acknowledged when the receiver has answered, or `hold_s` later."""
        now = time.monotonic()
        headers = np.frombuffer(lease.headers(), HEADERS)
        used = {*headers["hook_id"].tolist(), *headers["encoding_id"].tolist()}
        for number in used - self.names.keys():
            self.names[number] = self._context.name_of(number)
        self.writers.update(zip(headers["source"].tolist(), headers["shard"].tolist(), strict=True))
        self._outbox.offer(lease, headers, now)
        self._work(now)

    def idle(self) -> None:
        if not self.wants_packets:
            self._connector.wait(0.02)
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
            self._connector.wait(0.01)
        connected = self._connector.is_connected
        self._outbox.close(Dropped.CLOSED if connected else Dropped.UNREACHABLE)
        self._publish(time.monotonic())
        self._connector.say_goodbye(self._context.time_left_s())
        self._write(final=True)
        self._connector.close()

    def _work(self, now: float) -> None:
        """Everything that does not wait: answers, batches, time."""
        self._outbox.hold(now - self._options.hold_s)
        self._connector.work(now)
        if not self._connector.is_reachable:
            self._outbox.expire(now - self._options.wait_s)
        if now >= self._next_write:
            self._next_write = now + WRITE_S
            self._write(final=False)
        self._publish(now)

    # What a connection says (`connector.Origin`).

    def choose(self, entries: Sequence[Entry]) -> Entry | None:
        """Of receivers that take all hooks one by the name of this run; with hooks of its own before `*`."""
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

    def hello(self) -> wire.Hello:
        context, document = self._context, self._document
        mine = {number: name for number, name in enumerate(context.names()) if name in self._mine}
        return wire.Hello(
            job=self._job,
            run_id=context.run_id,
            attempt=context.attempt,
            worker=context.name,
            node=os.uname().nodename,
            ranks=tuple(self.writers),
            names={**mine, **self.names},
            streams=tuple(
                {k: v for k, v in one.items() if k in wire.STREAM_FIELDS} for one in self._streams
            ),
            side=self._side,
            step_unit=str(document.get("step_unit", "step")),
            first_packet=context.first_packet,
            world=max(_world(), int(document.get("ranks") or 1)),
        )

    def report(self, *, final: bool) -> wire.Report:
        counts = self._outbox.counts
        return wire.Report(
            counts.taken, counts.acked, max(0, counts.in_flight), dict(counts.dropped), final
        )

    def clock_ns(self) -> int:
        """The clock that packets are stamped with."""
        return max(0, time.monotonic_ns() + self._context.clock_shift_ns)

    def welcomed(self, welcome: wire.Welcome, address: str) -> None:
        """Settle with the receiver what an earlier forwarder held, and learn what it takes."""
        before = self._receiver
        if before is not None and before.get("id") != welcome.id:
            log.warning(
                "another receiver than before: packets without an answer are sent to it as well"
            )
            self._elsewhere = self._outbox.counts.acked
        self._receiver = {
            "name": welcome.name,
            "id": welcome.id,
            "address": address,
            "elsewhere": self._elsewhere,
        }
        outbox, skip = self._outbox, set(welcome.skip)
        outbox.max_message, outbox.max_packet = welcome.max_message, welcome.max_packet
        outbox.skip = {n for n, name in enumerate(self._context.names()) if name in skip}
        outbox.welcome(welcome.accepted, self._elsewhere)
        log.info("sending to %s at %s", welcome.name, address)
        self._write(final=False)

    # The account.

    def _publish(self, now: float) -> None:
        connector = self._connector
        self._meters.show(
            self._outbox, credit=connector.credit, connected=connector.is_welcomed, now=now
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
            "refused": {reason: count for reason, count in self._meters.refused.items() if count},
        }
        try:
            replace_file(self._file, json.dumps(document).encode(), sync=False)
        except OSError as error:
            log.warning("%s is not written: %s", self._file, error)


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
