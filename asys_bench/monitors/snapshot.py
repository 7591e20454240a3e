"""One reading of everything: each slot of the stats page and the bus's account, at one time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from asys_bench.contracts.bus import BusAccount, BusError, GroupAccount
from asys_bench.contracts.stats import (
    Counter,
    Gauge,
    Histogram,
    HistogramSnapshot,
    RunState,
    Slot,
    SlotField,
    StatsError,
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


# The bus's account in the stats page, for whoever has the page but not the bus (`asys-run top`).
#
# Bus descriptors belong to the run's own processes. A monitor's process has both, so its loop writes
# the account into its slot of the page once per tick: `data_bus_*` counters, labelled by reason and
# group as in metrics.csv.

PUBLISHED = "data_bus_"
_GROUP_FIELDS = {
    "delivered": "delivered",
    "lost": "lost_in_flight",
    "dead_lettered": "dead_lettered",
    "redelivered": "redelivered",
    "ready": "ready",
    "missed": "missed",
}
"""Part of the metric's name -> field of GroupAccount."""


class HasAccount(Protocol):
    """A bus client, or anything else that knows the counters."""

    def account(self) -> BusAccount: ...


def publish_account(slot: Slot, bus: HasAccount) -> None:
    """Write the counters into `slot`. A bus that is gone or a full slot leaves the last ones there."""
    with suppress(BusError, StatsError, OSError):
        account = bus.account()
        slot.counter("data_bus_push_count").set(account.produced)
        slot.counter("data_bus_push_bytes").set(account.produced_bytes)
        for reason, n in account.dropped.items():
            slot.counter("data_bus_drop_count", reason=str(reason)).set(n)
        for group in account.groups:
            for part, field in _GROUP_FIELDS.items():
                name = f"data_bus_{part}_count"
                slot.counter(name, group=group.group).set(getattr(group, field))


def published_account(page: StatsPage) -> BusAccount | None:
    """The newest account that a monitor of this run has published; None when none has."""
    newest: dict[str, int] = {}
    for _, slot in page.slots():
        found = {
            name: metric.value
            for name, metric in slot.metrics().items()
            if name.startswith(PUBLISHED) and isinstance(metric, Counter)
        }
        if found.get("data_bus_push_count", -1) > newest.get("data_bus_push_count", -1):
            newest = found
    return _read(newest) if newest else None


def _read(counters: dict[str, int]) -> BusAccount:
    dropped: dict[str, int] = {}
    groups: dict[str, dict[str, int]] = {}
    for full, value in counters.items():
        key = parse_key(full)
        if reason := key.label("reason"):
            dropped[reason] = value
        elif group := key.label("group"):
            part = key.name.removeprefix(PUBLISHED).removesuffix("_count")
            groups.setdefault(group, {})[_GROUP_FIELDS[part]] = value
    fields = dict.fromkeys(_GROUP_FIELDS.values(), 0)
    return BusAccount(
        counters["data_bus_push_count"],
        dropped,
        counters.get("data_bus_push_bytes", 0),
        tuple(GroupAccount(group=name, **{**fields, **found}) for name, found in groups.items()),
    )


# histograms.json: every histogram of a run's last reading, so that spectra can be drawn later.
#
#     {"<slot>": {"<metric>": {"count": n, "sum": s, "max": m, "buckets": [[index, count], ...]}}}
#
# Indices are those of `contracts.stats` (`bucket_upper` gives the edge); empty buckets are left out.


def histograms(page: StatsPage) -> dict[str, Any]:
    """The document; slots without histograms are left out."""
    found: dict[str, Any] = {}
    for slot_name, slot in page.slots():
        for name, metric in slot.metrics().items():
            if isinstance(metric, Histogram):
                found.setdefault(slot_name, {})[name] = _one(metric)
    return found


def _one(metric: Histogram) -> dict[str, Any]:
    snapshot = metric.snapshot()
    filled = [[index, n] for index, n in enumerate(snapshot.buckets) if n]
    return {
        "count": snapshot.count,
        "sum": snapshot.total,
        "max": snapshot.maximum,
        "buckets": filled,
    }
