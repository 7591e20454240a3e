"""The `receiver` host: packets of models that run elsewhere, pushed onto this node's bus.

A receiver is a host whose model is on other nodes, so everything that a run has works here: workers,
watchdog, monitors, resume, report. It begins its run with the first forwarder that connects, whose HELLO
names the streams; one that goes on knows them from its ledger, and continues that (`ledger`).

Its account is in the host's slot of the stats page and in `cluster/receiver.json` of the run's folder. For
every forwarder, at every moment::

    acked (by the forwarder) <= accepted (here) <= acked + window

with `window` the packets that are accepted and whose answer the forwarder has not counted yet; all are
equal when nothing is under way.

`asys-run receive` is the short way to it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asys_bench.cluster.accounts import CLUSTER_DIR, RECEIVER_FILE
from asys_bench.cluster.admission import Limits
from asys_bench.cluster.book import Book, BookError, Entry
from asys_bench.cluster.intake import Intake
from asys_bench.cluster.keys import RECEIVER, KeyFileError, read_pair, zmq_problem
from asys_bench.cluster.ledger import Ledger, LedgerError
from asys_bench.cluster.meters import ReceiverMeters, describe
from asys_bench.cluster.options import ReceiverOptions
from asys_bench.cluster.wire import Refusal
from asys_bench.contracts.bus import BaseDataBus, BusProducer
from asys_bench.contracts.host import (
    BaseHost,
    FedStream,
    Feed,
    HostError,
    HostOptions,
    HostPlugin,
    HostResult,
    LateClock,
)
from asys_bench.contracts.origin import ORIGIN, ring_meta
from asys_bench.contracts.packet import Places
from asys_bench.contracts.run_files import accepted_by, accounts_of, attempts_in
from asys_bench.system.allocator import keep_freed_memory, return_freed_memory
from asys_bench.system.files import replace_file

if TYPE_CHECKING:
    from asys_bench.cluster.router import Router

log = logging.getLogger(__name__)
POLL_S, BUSY_S, LOOK_S, MEMORY_S, WRITE_S = 0.05, 0.002, 0.5, 0.01, 2.0
FILLING = 0.25
"""Of the memory that the process may take: from there on it looks every MEMORY_S, for what is kept of a
message without an end wakes nobody."""
LEAVING_S = 1.0
LATE_S = 1.0
"""A turn of the loop that takes longer has made peers look silent; one that starts the workers takes many."""


class _OwnBus:
    """The run's bus, as `intake.Bus`."""

    def __init__(self, clock: LateClock) -> None:
        self._clock = clock
        self.bus: BaseDataBus | None = None
        self.max_packet = 1 << 62
        self._producers: list[BusProducer] = []
        self._ids: dict[str, int] = {}
        self._step = 0

    def begin(self, feed: dict[str, Any]) -> None:
        streams = tuple(
            FedStream(one["name"], {k: v for k, v in one.items() if k != "side"}, one["side"])
            for one in feed["streams"]
        )
        fed = self._clock.feed(Feed(streams, feed["shards"], (ORIGIN,), feed["step_unit"]))
        self.bus = bus = fed.bus
        self._producers = [bus.producer(shard) for shard in range(feed["shards"])]
        self._meta = ring_meta(bus.intern(ORIGIN))
        self._bytes, self._packets = fed.capacity_bytes, fed.capacity_packets
        self.max_packet = min(self._bytes, *(p.max_payload_bytes for p in self._producers))

    def id_of(self, name: str) -> int:
        assert self.bus is not None
        found = self._ids.get(name)
        if found is None:
            found = self._ids[name] = self.bus.intern(name)
        return found

    def push(self, shard: int, data: memoryview, places: Places) -> int:
        return self._producers[shard].try_push_frames(self._meta, data, places)

    def room(self) -> tuple[int, int]:
        if self.bus is None:
            return 0, 0
        free = 1.0 - self.bus.fill_ratio()
        return int(free * self._bytes), int(free * self._packets)

    def passed(self, host_step: int) -> None:
        if host_step > self._step:
            self._step = host_step
            self._clock.step_to(host_step)


class ReceiverHost(BaseHost):
    """Steps are those of the hosts elsewhere: the greatest that was seen."""

    step_unit = "step"

    def __init__(self, options: ReceiverOptions, seed: int) -> None:
        self._options = options
        self._router: Router | None = None
        self._announced: Callable[[str], None] = lambda address: print(
            f"receiver {options.name}: listening at {address}", flush=True
        )

    def build(self) -> torch.nn.Module | None:
        """None: streams are known when the first forwarder comes."""
        from asys_bench.cluster.router import Router, RouterError

        options = self._options
        try:
            keys = read_pair(options.keys, RECEIVER) if options.keys is not None else None
            self._router = Router(
                options.listen,
                keys,
                options.keys,
                int(options.max_message_mib * (1 << 20)),
                int(2 * options.memory_mib * (1 << 20)),
            )
        except (KeyFileError, RouterError) as error:
            raise HostError(f"host.options.receiver: {error}") from None
        self._public_key = keys.public if keys is not None else ""
        return None

    def run(self, clock: LateClock) -> HostResult:
        """Receive until it is asked to stop, its lifeline is cut, or nobody has come for long enough.

        Raises:
            HostError: the ledger is damaged, or somebody else has taken the address.
        """
        from asys_bench.cluster.router import RouterError

        assert self._router is not None
        try:
            return _Receiving(
                self._options, clock, self._router, self._public_key, self._announced
            ).run()
        except RouterError as error:
            raise HostError(f"host.options.receiver: {error}") from None

    def close(self) -> None:
        if self._router is not None:
            self._router.close()
            self._router = None


class _Receiving:
    """One life of a receiver."""

    def __init__(
        self,
        options: ReceiverOptions,
        clock: LateClock,
        router: Router,
        public_key: str,
        announced: Callable[[str], None],
    ) -> None:
        self._options, self._clock, self._router = options, clock, router
        self._public_key, self._announced = public_key, announced
        self._started = time.monotonic()
        run_dir = clock.run_dir
        attempts = attempts_in(run_dir)
        self._attempt = max((int(one["attempt"]) for one in attempts), default=-1) + 1
        mib = 1 << 20
        try:
            self._ledger = Ledger(
                run_dir, self._attempt, lambda attempt: _accepted_in(run_dir, attempt)
            )
        except (LedgerError, OSError) as error:
            raise HostError(f"the receiver's ledger: {error}") from None
        self._bus = _OwnBus(clock)
        limits = Limits(
            int(options.window_mib * mib),
            int(options.memory_mib * mib),
            int(options.max_message_mib * mib),
            options.max_connections,
            options.shards,
        )
        self._intake = Intake(
            self._ledger, self._bus, limits, router.send,
            name=options.name, hooks=options.hooks, job=options.job,
        )  # fmt: skip
        self._meters: ReceiverMeters | None = None
        self._book: tuple[Book, Entry] | None = None
        self._lifeline = options.lifeline_fd

    def run(self) -> HostResult:
        router, intake = self._router, self._intake
        keep_freed_memory()  # every message is a block of megabytes
        self._announced(router.address)
        self._announce()
        stopped = False
        last_seen = now = time.monotonic()
        next_look = next_memory = next_write = used = 0.0
        try:
            while not self._clock.should_stop:
                wait = MEMORY_S if used > FILLING else POLL_S
                if intake.is_waiting:
                    wait = BUSY_S
                router.poll(wait, self._receive)
                intake.push_waiting()
                intake.answer()
                began, now = now, time.monotonic()
                if now - began > LATE_S:
                    intake.excuse(now - began)
                if intake.connections:
                    last_seen = now
                if now >= next_memory:
                    next_memory = now + MEMORY_S
                    used = router.memory_used()
                    if used > 1.0:
                        self._give_memory_back()
                if now >= next_look:
                    next_look = now + LOOK_S
                    intake.look()
                    self._count()
                    if self._lifeline_is_cut():
                        log.warning("the lifeline is cut: %s stops", self._options.name)
                        stopped = True
                        break
                    ttl = self._options.idle_ttl_s
                    if ttl is not None and now - last_seen > ttl:
                        log.warning("no forwarder for %g s: %s stops", ttl, self._options.name)
                        break
                if now >= next_write:
                    next_write = now + WRITE_S
                    self._write(final=False)
            else:
                stopped = True
            intake.leave()
            until = time.monotonic() + LEAVING_S
            while router.poll(0.01, lambda peer, data: None) and time.monotonic() < until:
                pass
        finally:
            self._withdraw()
            # Workers may take a minute to drain: whoever connects now must not wait for an answer.
            router.close(LEAVING_S)
            self._count()
            self._write(final=True)
            self._clock.end()
            figures = {
                "accepted": float(self._ledger.total().accepted),
                "in_doubt": float(self._ledger.in_doubt),
            }
            self._ledger.close()
        return HostResult(
            self._clock.steps_made, time.monotonic() - self._started, stopped_early=stopped, figures=figures
        )  # fmt: skip

    def _receive(self, peer: bytes, data: memoryview) -> None:
        self._intake.receive(peer, data, time.monotonic_ns())

    def _give_memory_back(self) -> None:
        count = self._intake.refused.get(Refusal.MEMORY, 0) + 1
        self._intake.refused[Refusal.MEMORY] = count
        if count & (count - 1) == 0:
            log.warning(
                "more than twice memory_mib is taken (%d times so far): every connection is closed and may "
                "come again",
                count,
            )
        self._intake.forget_all()
        self._router.reset()
        return_freed_memory()

    def _lifeline_is_cut(self) -> bool:
        if self._lifeline is None:
            return False
        poll = select.poll()
        poll.register(self._lifeline, select.POLLIN | select.POLLHUP)
        for _, event in poll.poll(0):
            if event & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                return True
            if event & select.POLLIN and not os.read(self._lifeline, 4096):
                return True
        return False

    # The address book.

    def _announce(self) -> None:
        options = self._options
        if options.book is None:
            return
        try:
            book = Book.open(options.book)
            generation = options.generation
            if generation is None:
                generation = book.next_generation(options.name)
            entry = Entry(
                options.name, self._advertised(), self._public_key, options.hooks,
                str(self._clock.run_dir), os.uname().nodename, generation, options.job, time.time_ns(),
            )  # fmt: skip
            book.announce(entry)
        except (BookError, ValueError) as error:
            raise HostError(f"host.options.receiver.book: {error}") from None
        self._book = book, entry

    def _advertised(self) -> str:
        host, _, port = self._router.address.removeprefix("tcp://").rpartition(":")
        wanted = self._options.advertise
        if wanted is not None:
            name, colon, its_port = wanted.rpartition(":")
            if colon and its_port.isdecimal() and not name.endswith(":"):
                return f"tcp://{name}:{its_port}"
            return f"tcp://{wanted}:{port}"
        if host in ("*", "0.0.0.0", "[::]"):
            host = os.uname().nodename
        return f"tcp://{host}:{port}"

    def _withdraw(self) -> None:
        if self._book is None:
            return
        book, entry = self._book
        try:
            book.withdraw(entry.name, entry.generation)
        except BookError as error:
            log.warning("the entry in the address book stays: %s", error)

    # The account.

    def _count(self) -> None:
        if self._meters is None:
            if not self._intake.began:
                return
            self._meters = ReceiverMeters(self._clock.metrics())
        self._meters.count(self._ledger, self._intake, self._router.refused_keys)

    def _write(self, *, final: bool) -> None:
        document = describe(self._ledger, self._intake) | {
            "run_id": self._clock.run_dir.name,
            "attempt": self._attempt,
            "name": self._options.name,
            "address": self._router.address,
            "final": final,
        }
        if self._router.refused_keys:
            document["refused"][Refusal.KEY] = self._router.refused_keys
        try:
            path = self._clock.run_dir / CLUSTER_DIR / RECEIVER_FILE
            replace_file(path, json.dumps(document).encode(), sync=False)
        except OSError as error:
            log.warning("%s is not written: %s", RECEIVER_FILE, error)


def _accepted_in(run_dir: Path, attempt: int) -> int | None:
    """Packets that the bus of an attempt accepted, as the last of its workers to leave has written."""
    told = [one for one in accounts_of(run_dir) if one["attempt"] == attempt]
    told += [
        one for one in attempts_in(run_dir) if one["attempt"] == attempt and one.get("account")
    ]
    return max((accepted_by(one["account"]) for one in told), default=None)


def _build(options: HostOptions, seed: int) -> BaseHost:
    assert isinstance(options, ReceiverOptions)
    return ReceiverHost(options, seed)


plugin = HostPlugin(
    name="receiver",
    summary="packets of models that run on other nodes",
    options=ReceiverOptions,
    build=_build,
    feeds=True,
    unavailable=zmq_problem,
)
