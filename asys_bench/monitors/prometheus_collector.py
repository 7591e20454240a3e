"""From a reading of the stats page to Prometheus's metric families, made anew at every scrape.

No state is kept between scrapes but the label values seen: counters live in the page, so a restarted
exporter goes on where the last one was. prometheus_client's multiprocess mode is not used; it would
keep a second copy of every counter in files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

import asys_bench
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.stats import HistogramSnapshot, RunState, WorkerState
from asys_bench.monitors import prometheus_metrics as metrics
from asys_bench.monitors.figures import HOST_SLOT, is_host
from asys_bench.monitors.prometheus_metrics import LATENCY_EDGES, PAGE, Kind, MetricSpec
from asys_bench.monitors.snapshot import MetricKey, RunSnapshot, SlotSnapshot
from asys_bench.system.process_usage import process_usage

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_RUNNING = (WorkerState.STARTING, WorkerState.READY)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What does not change during a run."""

    run_id: str
    started_s: float
    """Since the epoch."""
    capacity_packets: int | None = None


class RunCollector(Collector):
    """Reads the run through `read` at every scrape.

    max_label_values: of each label; the values beyond are left out and counted.
    """

    def __init__(
        self, read: Callable[[], RunSnapshot], facts: RunFacts, max_label_values: int
    ) -> None:
        self._read, self._facts = read, facts
        self._limit = max_label_values
        self._values: dict[str, set[str]] = {}
        self._omitted: set[tuple[str, str]] = set()
        self._scrapes = 0
        self._last_s = math.nan

    def describe(self) -> Iterable[Family]:
        """Nothing: registering must not read the run."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Every family of this scrape."""
        started = time.perf_counter()
        families: dict[str, Family] = {}
        snapshot = self._read()
        self._run(families, snapshot)
        for slot in snapshot.slots.values():
            self._slot(families, slot)
        if snapshot.account is not None:
            self._bus(families, snapshot.account)
        self._scrapes += 1
        self._add(families, metrics.SCRAPES, (), self._scrapes)
        self._add(families, metrics.SCRAPE_SECONDS, (), self._last_s)
        self._add(families, metrics.OMITTED, (), len(self._omitted))
        self._last_s = time.perf_counter() - started
        yield from families.values()

    def _run(self, families: dict[str, Family], snapshot: RunSnapshot) -> None:
        facts = self._facts
        self._add(families, metrics.RUN_INFO, (facts.run_id, asys_bench.__version__), 1)
        self._add(families, metrics.RUN_START, (), facts.started_s)
        for state in RunState:
            here = float(snapshot.state is state)
            self._add(families, metrics.RUN_STATE, (state.name.lower(),), here)

    def _slot(self, families: dict[str, Family], slot: SlotSnapshot) -> None:
        for key, total in slot.counters.items():
            self._page(families, slot, key, total)
        for key, value in slot.gauges.items():
            if slot.name == HOST_SLOT and not key.labels and key.name.startswith("host_"):
                figure = key.name.removeprefix("host_")
                self._add(families, metrics.HOST_FIGURE, (figure,), value)
            else:
                self._page(families, slot, key, value)
        for key, histogram in slot.histograms.items():
            self._histogram(families, slot, key, histogram)
        if slot.state is not WorkerState.EMPTY:
            self._process(families, slot)

    def _page(
        self, families: dict[str, Family], slot: SlotSnapshot, key: MetricKey, value: float
    ) -> None:
        spec = PAGE.get(key.name)
        if spec is not None and spec.kind is not Kind.HISTOGRAM:
            self._add(families, spec, _label_values(spec, slot, key), value * spec.factor)

    def _histogram(
        self,
        families: dict[str, Family],
        slot: SlotSnapshot,
        key: MetricKey,
        histogram: HistogramSnapshot,
    ) -> None:
        spec = PAGE.get(key.name)
        if spec is None or spec.kind is not Kind.HISTOGRAM:
            return
        values = _label_values(spec, slot, key)
        if not self._allowed(spec.labels, values):
            return
        family = families.get(spec.name)
        if family is None:
            family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
            families[spec.name] = family
        assert isinstance(family, HistogramMetricFamily)
        below = list(accumulate(histogram.buckets, initial=0))
        buckets = [(edge.le, float(below[edge.index])) for edge in LATENCY_EDGES]
        buckets.append(("+Inf", float(below[-1])))
        family.add_metric(values, buckets, histogram.total * spec.factor)

    def _process(self, families: dict[str, Family], slot: SlotSnapshot) -> None:
        name = (slot.name,)
        for state in WorkerState:
            labels = (slot.name, state.name.lower())
            self._add(families, metrics.WORKER_STATE, labels, float(slot.state is state))
        self._add(families, metrics.RESTARTS, name, slot.restarts)
        if slot.state not in _RUNNING:
            return
        if not is_host(slot.name):  # a host beats once per step, however long that takes
            self._add(families, metrics.HEARTBEAT_AGE, name, slot.heartbeat_age_s)
        usage = process_usage(slot.pid)
        if usage is not None:
            self._add(families, metrics.CPU, name, usage[0])
            self._add(families, metrics.RESIDENT, name, usage[1])

    def _bus(self, families: dict[str, Family], account: BusAccount) -> None:
        self._add(families, metrics.OFFERED, (), account.produced)
        self._add(families, metrics.ACCEPTED_BYTES, (), account.produced_bytes)
        for reason, n in account.dropped.items():
            self._add(families, metrics.DROPPED, (str(reason),), n)
        for group in account.groups:
            name = (group.group,)
            self._add(families, metrics.DELIVERED, name, group.delivered)
            self._add(families, metrics.LOST, name, group.lost_in_flight)
            self._add(families, metrics.DEAD_LETTERED, name, group.dead_lettered)
            self._add(families, metrics.REDELIVERED, name, group.redelivered)
            self._add(families, metrics.MISSED, name, group.missed)
            self._add(families, metrics.READY, name, group.ready)
            if self._facts.capacity_packets:
                fill = group.ready / self._facts.capacity_packets
                self._add(families, metrics.FILL, name, fill)

    def _add(
        self, families: dict[str, Family], spec: MetricSpec, values: tuple[str, ...], value: float
    ) -> None:
        if math.isnan(value) or not self._allowed(spec.labels, values):
            return  # unknown is absent, not NaN: PromQL's absent() and alerts then work
        family = families.get(spec.name)
        if family is None:
            kind = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
            family = families[spec.name] = kind(spec.name, spec.help, labels=spec.labels)
        assert not isinstance(family, HistogramMetricFamily)
        family.add_metric(values, value)

    def _allowed(self, labels: tuple[str, ...], values: tuple[str, ...]) -> bool:
        for label, value in zip(labels, values, strict=True):
            known = self._values.setdefault(label, set())
            if value in known:
                continue
            if len(known) >= self._limit:
                if len(self._omitted) < 10 * self._limit:
                    self._omitted.add((label, value))
                return False
            known.add(value)
        return True


def _label_values(spec: MetricSpec, slot: SlotSnapshot, key: MetricKey) -> tuple[str, ...]:
    return tuple(slot.name if name == "worker" else key.label(name) for name in spec.labels)
