"""One reading of everything: each slot of the stats page and the bus's account, at one time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from asys_bench.contracts.bus import BusAccount, BusError
from asys_bench.contracts.stats import (
    Counter,
    Gauge,
    Histogram,
    HistogramSnapshot,
    RunState,
    Slot,
    SlotField,
    StatsPage,
    WorkerState,
    split_metric_name,
)


@dataclass(frozen=True, slots=True)
class MetricKey:
    """A metric's name and its labels, sorted."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()

    def label(self, key: str) -> str:
        """The label's value, or an empty string."""
        return next((value for name, value in self.labels if name == key), "")


@lru_cache(maxsize=8192)
def parse_key(full: str) -> MetricKey:
    """A full name from the stats page, taken apart."""
    name, labels = split_metric_name(full)
    return MetricKey(name, tuple(sorted(labels.items())))


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """One process's part of the page, read at one time."""

    name: str
    state: WorkerState
    pid: int
    incarnation: int
    restarts: int
    exit_code: int
    heartbeat_age_s: float
    """Infinity before the first heartbeat."""
    counters: Mapping[MetricKey, int]
    gauges: Mapping[MetricKey, float]
    histograms: Mapping[MetricKey, HistogramSnapshot]


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """The whole page and the bus's account. Each number is exact; they are not read atomically."""

    time_ns: int
    """CLOCK_MONOTONIC."""
    state: RunState
    slots: Mapping[str, SlotSnapshot]
    account: BusAccount | None
    """None when the bus could not be read."""


def take_snapshot(
    page: StatsPage,
    account: Callable[[], BusAccount] | BusAccount | None,
    time_ns: int | None = None,
) -> RunSnapshot:
    """Read `page` and the account now. A bus that is gone gives `account=None`, not an error."""
    now = time.monotonic_ns() if time_ns is None else time_ns
    return RunSnapshot(
        now,
        page.run_state,
        {name: _read_slot(name, slot, now) for name, slot in page.slots()},
        _read_account(account),
    )


def _read_account(account: Callable[[], BusAccount] | BusAccount | None) -> BusAccount | None:
    if account is None or isinstance(account, BusAccount):
        return account
    try:
        return account()
    except (BusError, OSError):
        return None


def _read_slot(name: str, slot: Slot, now: int) -> SlotSnapshot:
    counters: dict[MetricKey, int] = {}
    gauges: dict[MetricKey, float] = {}
    histograms: dict[MetricKey, HistogramSnapshot] = {}
    for full, metric in slot.metrics().items():
        key = parse_key(full)
        if isinstance(metric, Counter):
            counters[key] = metric.value
        elif isinstance(metric, Gauge):
            gauges[key] = metric.value
        elif isinstance(metric, Histogram):
            histograms[key] = metric.snapshot()
    return SlotSnapshot(
        name=name,
        state=slot.state,
        pid=slot.get(SlotField.PID),
        incarnation=slot.get(SlotField.INCARNATION),
        restarts=slot.get(SlotField.RESTARTS),
        exit_code=slot.get(SlotField.EXIT_CODE),
        heartbeat_age_s=max(0.0, slot.silence_s(now)),
        counters=counters,
        gauges=gauges,
        histograms=histograms,
    )
