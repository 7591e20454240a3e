"""A bus under test with its consumers: built by production's factory, verified packet by packet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asys_bench.config.assembly import AssemblyError, create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.contracts.bus import BaseDataBus, BusProducer, Delivery, GroupSpec
from asys_bench.contracts.scenario import RoundContext, ScenarioError
from asys_bench.harness.measuring.consumers import ConsumerSpec, ForkedConsumer, ThreadConsumer
from asys_bench.harness.measuring.payloads import PayloadPool, meta_for
from asys_bench.harness.plugins import backend_plugin

_Consumer = ForkedConsumer | ThreadConsumer
SETTLE_S = 10.0
STALL_S = 2.0


@dataclass(frozen=True)
class TransportSpec:
    """The bus and its readers."""

    payload_bytes: int
    most_packets: int
    """Packets that may be offered in all, warm-up included."""
    consumers: Sequence[ConsumerSpec]
    delivery: Mapping[str, Delivery] = field(default_factory=dict)
    capacity_packets: int = 4096
    capacity_mib: int = 64
    checksum: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(consumer.group for consumer in self.consumers))


class Transport:
    """One producer (shard 0) and verified consumers."""

    def __init__(
        self,
        spec: TransportSpec,
        bus: BaseDataBus,
        pool: PayloadPool,
        consumers: Sequence[_Consumer],
        transports: bool = True,
    ) -> None:
        self.spec, self.bus, self.pool, self.consumers = spec, bus, pool, consumers
        self.producer: BusProducer = bus.producer(0)
        self.offered = 0
        self.accepted = 0
        self._refused: list[int] = []
        self.transports = transports
        """False for a floor that delivers nothing."""

    def push(self, timestamp_ns: int, timeout_s: float = 0.0) -> bool:
        """Offer the next packet; False when it was refused (a drop, counted)."""
        number = self.offered
        payload = self.pool.stamped(number)
        meta = meta_for(number, self.spec.payload_bytes, timestamp_ns)
        self.offered += 1
        if timeout_s:
            accepted = self.producer.push(meta, payload, timeout_s)
        else:
            accepted = self.producer.try_push(meta, payload)
        if accepted:
            self.accepted += 1
        else:
            self._refused.append(number)
        return accepted

    def push_batches(self, packets: int, batch: int, timeout_s: float) -> None:
        """Offer `packets` in batches and wait for room whenever one is cut short.

        Raises:
            ScenarioError: no room within `timeout_s`.
        """
        meta = meta_for(self.offered, self.spec.payload_bytes, 0)
        last = self.offered + packets
        deadline = time.monotonic() + timeout_s
        while self.offered < last:
            rows = self.pool.stamped_rows(self.offered, min(batch, last - self.offered))
            accepted = self.producer.try_push_many(meta, rows)
            self.offered += accepted
            self.accepted += accepted
            if accepted:
                deadline = time.monotonic() + timeout_s
            if accepted < len(rows):
                if time.monotonic() > deadline:
                    raise ScenarioError(f"the bus had no room for {timeout_s:g} s")
                time.sleep(2e-5)

    def wait_read(self, stall_s: float = STALL_S) -> None:
        """Until every group has read every accepted packet, or nothing was read for `stall_s`.

        A packet that never comes is no error here: `finish` counts it as lost.
        """
        if not self.transports:
            return
        groups = self.spec.groups
        pause_s, most, moved_at = 2e-5, -1, time.monotonic()
        while not all(self.delivered(group) >= self.accepted for group in groups):
            total = sum(self.delivered(group) for group in groups)
            now = time.monotonic()
            if total > most:
                most, moved_at = total, now
            elif now - moved_at > stall_s:
                return
            time.sleep(pause_s)
            pause_s = min(1e-3, pause_s * 1.5)

    def delivered(self, group: str) -> int:
        """Packets that the group's members have verified so far."""
        return sum(c.tally.delivered for c in self.consumers if c.spec.group == group)

    def last_read_ns(self) -> int:
        """CLOCK_MONOTONIC at which the last packet of all was verified."""
        return max(consumer.tally.last_ns for consumer in self.consumers)

    def finish(self, context: RoundContext, timeout_s: float = SETTLE_S) -> None:
        """End the stream, let every consumer drain, and add what they saw to `context.integrity`.

        Raises:
            ScenarioError: a consumer failed or does not end.
        """
        self.bus.finish()
        for consumer in self.consumers:
            if not consumer.join(timeout_s):
                raise ScenarioError(f"consumer {consumer.spec.member} did not end")
            if consumer.tally.failed:
                raise ScenarioError(f"consumer {consumer.spec.member} failed; see the log")
        self._tally(context)

    def _tally(self, context: RoundContext) -> None:
        integrity = context.integrity
        expected = np.ones(self.offered, bool)
        expected[self._refused] = False
        account = self.bus.account()
        integrity.offered += self.offered
        integrity.dropped += len(self._refused)
        if not self.transports:
            return
        for group in self.spec.groups:
            members = [c.tally for c in self.consumers if c.spec.group == group]
            seen = np.zeros(self.offered, np.int64)
            for tally in members:
                seen += tally.seen[: self.offered]
                integrity.delivered += tally.delivered
                integrity.torn += tally.torn
                integrity.reordered += tally.reordered
            torn = sum(tally.torn for tally in members)
            integrity.lost += max(0, int((expected & (seen == 0)).sum()) - torn)
            integrity.duplicated += int(np.maximum(seen - 1, 0).sum())
            integrity.unaccounted += abs(account.imbalance(account.group(group)))


@contextmanager
def transport(context: RoundContext, spec: TransportSpec) -> Iterator[Transport]:
    """A running bus with subscribed consumers; everything is ended on the way out."""
    with transports(context, [spec]) as (one,):
        yield one


@contextmanager
def transports(context: RoundContext, specs: Sequence[TransportSpec]) -> Iterator[list[Transport]]:
    """A bus for each spec, all of one size of payload, side by side in this process."""
    plugin = backend_plugin(context.backend.name)
    reason = plugin.unavailable()
    if reason is not None:
        raise ScenarioError(f"backend {plugin.name!r} cannot run here: {reason}")
    pool = PayloadPool(context.seed, specs[0].payload_bytes)
    kind = ForkedConsumer if plugin.capabilities.cross_process else ThreadConsumer
    with ExitStack() as ends:
        # Before any bus: it may start threads, and a fork copies none of them.
        consumers = [
            [_closed(ends, kind(consumer, pool, spec.most_packets)) for consumer in spec.consumers]
            for spec in specs
        ]
        running = []
        for spec, its in zip(specs, consumers, strict=True):
            bus = _bus(plugin.name, spec)
            ends.callback(_close, its, bus)
            if plugin.capabilities.transports_payload:
                handle = bus.handle() if kind is ForkedConsumer else None
                for one in its:
                    one.attach(bus, handle)
            running.append(Transport(spec, bus, pool, its, plugin.capabilities.transports_payload))
        yield running


def _closed(ends: ExitStack, consumer: _Consumer) -> _Consumer:
    ends.callback(consumer.close)
    return consumer


def _close(consumers: Sequence[_Consumer], bus: BaseDataBus) -> None:
    for one in consumers:
        one.close()
    bus.close()


def _bus(backend: str, spec: TransportSpec) -> BaseDataBus:
    config = BusConfig(
        backend=backend,
        capacity_packets=spec.capacity_packets,
        capacity_mib=spec.capacity_mib,
        checksum=spec.checksum,
        options={backend: dict(spec.options)},
    )
    groups = [
        GroupSpec(name, spec.delivery.get(name, Delivery.AT_MOST_ONCE)) for name in spec.groups
    ]
    try:
        return create_data_bus(config, groups, names=("bench",))
    except AssemblyError as error:
        raise ScenarioError(str(error)) from error
