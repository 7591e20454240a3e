"""The bus's account in the stats page, for whoever has the page but not the bus (`asys-run top`).

Bus descriptors belong to the run's own processes. A monitor's process has both, so its loop writes
the account into its slot of the page once per tick: `data_bus_*` counters, labelled by reason and
group as in metrics.csv.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from asys_bench.contracts.bus import BusAccount, BusError, GroupAccount
from asys_bench.contracts.stats import Counter, Slot, StatsError, StatsPage
from asys_bench.monitors.snapshot import parse_key

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
