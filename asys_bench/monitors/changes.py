"""What changed between two readings that a person wants to find in a log afterwards. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from asys_bench.contracts.stats import WorkerState
from asys_bench.monitors.alarm_page import EXPECTED, OVER, RAISED, STEP, VALUE
from asys_bench.monitors.figures import RunFigures, figures_of
from asys_bench.monitors.rates import increase
from asys_bench.monitors.snapshot import MetricKey, RunSnapshot, SlotSnapshot

LOWERED = 0.75
"""A rate at or below this share of the last logged one is worth a line: it was halved, give or take
what it recovered since."""
IS_RAISED = MetricKey("sampling_is_raised")
QUIET_S = 3.0
"""Drops have ended after this long without one."""

_STATE_EVENTS: dict[WorkerState, tuple[str, int]] = {
    WorkerState.READY: ("worker_ready", logging.INFO),
    WorkerState.DONE: ("worker_done", logging.INFO),
    WorkerState.FAILED: ("worker_failed", logging.WARNING),
    WorkerState.QUARANTINED: ("worker_quarantined", logging.ERROR),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the log."""

    event: str
    level: int
    """A level of the logging module."""
    fields: Mapping[str, object] = field(default_factory=dict)


class ChangeDetector:
    """Feeds on readings in order and yields what changed since the last one.

    `resumed`: an earlier monitor has logged the run so far, so the first reading is only a baseline.
    """

    def __init__(self, resumed: bool = False) -> None:
        self._before: RunSnapshot | None = None
        self._resumed = resumed
        self._rates: dict[str, float] = {}
        self._full_rates: dict[str, float] = {}
        self._totals: dict[str, int] = {}
        self._last_drop_ns: dict[str, int] = {}
        self._raised: dict[str, bool] = {}
        self._connected: dict[str, bool] = {}

    def observe(self, now: RunSnapshot, figures: RunFigures | None = None) -> list[Change]:
        """Changes since the previous reading. `figures`: those of `now`, if the caller has them."""
        figures = figures or figures_of(now)
        found = [*self._run(now), *self._workers(now), *self._rate_changes(figures)]
        found += [*self._drops(now), *self._faults(figures), *self._alarms(now)]
        found += self._remote(now, figures)
        first = self._before is None
        self._before = now
        return [] if first and self._resumed else found

    def _run(self, now: RunSnapshot) -> Iterator[Change]:
        if self._before is None or self._before.state is not now.state:
            yield Change("run_state", logging.INFO, {"state": now.state.name.lower()})

    def _workers(self, now: RunSnapshot) -> Iterator[Change]:
        for name, slot in now.slots.items():
            before = self._before.slots.get(name) if self._before else None
            if slot.restarts > (before.restarts if before else 0):
                yield Change("worker_restarted", logging.WARNING, _worker_fields(slot))
            if slot.state in _STATE_EVENTS and (
                before is None
                or before.state is not slot.state
                or before.incarnation != slot.incarnation
            ):
                event, level = _STATE_EVENTS[slot.state]
                yield Change(event, level, _worker_fields(slot))

    def _rate_changes(self, figures: RunFigures) -> Iterator[Change]:
        for hook in figures.hooks:
            rate = hook.sampling_rate
            if rate != rate:  # NaN: not published
                continue
            last = self._rates.setdefault(hook.hook, rate)
            full = max(rate, self._full_rates.get(hook.hook, 0.0))
            self._full_rates[hook.hook] = full
            lowered = rate <= LOWERED * last
            recovered = rate > last and (rate >= full or rate >= 2 * last)
            if lowered or recovered:
                self._rates[hook.hook] = rate
                event = "sampling_rate_lowered" if lowered else "sampling_rate_recovered"
                level = logging.WARNING if lowered else logging.INFO
                yield Change(event, level, {"hook": hook.hook, "from": last, "to": rate})

    def _drops(self, now: RunSnapshot) -> Iterator[Change]:
        for reason, total in now.account.dropped.items() if now.account else ():
            fields = {"reason": str(reason), "total": total}
            yield from self._drops_of("drops", now.time_ns, str(reason), fields, total)

    def _drops_of(
        self, event: str, time_ns: int, key: str, fields: Mapping[str, object], total: int
    ) -> Iterator[Change]:
        """Drops begin once, and end with `QUIET_S` without one."""
        grown = self._grown(f"dropped {key}", total)
        began = self._last_drop_ns.get(key)
        if grown:
            self._last_drop_ns[key] = time_ns
            if began is None:
                yield Change(f"{event}_began", logging.WARNING, {**fields, "new": grown})
        elif began is not None and time_ns - began >= QUIET_S * 1e9:
            del self._last_drop_ns[key]
            yield Change(f"{event}_ended", logging.INFO, fields)

    def _remote(self, now: RunSnapshot, figures: RunFigures) -> Iterator[Change]:
        """Receivers that come and go, and what was not sent on."""
        for one in figures.remotes:
            fields: dict[str, object] = {"worker": one.worker, "acked": one.acked}
            before = self._connected.get(one.worker, False)
            self._connected[one.worker] = one.connected
            if one.connected and not before:
                yield Change("remote_connected", logging.INFO, fields)
            elif before and not one.connected:
                yield Change("remote_away", logging.WARNING, fields)
            for reason, total in one.dropped.items():
                told = {"worker": one.worker, "reason": reason, "total": total}
                key = f"{one.worker} {reason}"
                yield from self._drops_of("remote_drops", now.time_ns, key, told, total)
            yield from self._refusals("remote_refused", one.worker, one.refused)
        if figures.receiver is not None:
            yield from self._refusals("receiver_refused", "host", figures.receiver.refused)

    def _refusals(self, event: str, worker: str, refused: Mapping[str, int]) -> Iterator[Change]:
        for reason, total in refused.items():
            if grown := self._grown(f"{event} {worker} {reason}", total):
                fields = {"worker": worker, "reason": reason, "new": grown, "total": total}
                yield Change(event, logging.WARNING, fields)

    def _faults(self, figures: RunFigures) -> Iterator[Change]:
        for hook in figures.hooks:
            if grown := self._grown(f"failed {hook.hook}", hook.failed):
                fields: dict[str, object] = {"hook": hook.hook, "new": grown, "total": hook.failed}
                yield Change("hook_failed", logging.ERROR, fields)
        for sae in figures.saes:
            total = sae.nonfinite_rows
            if grown := self._grown(f"nonfinite {sae.worker} {sae.hook}", total):
                fields = {"worker": sae.worker, "hook": sae.hook, "new": grown, "total": total}
                yield Change("nonfinite_rows", logging.WARNING, fields)
        if grown := self._grown("write errors", figures.archive_write_errors):
            fields = {"new": grown, "total": figures.archive_write_errors}
            yield Change("archive_write_errors", logging.ERROR, fields)

        if grown := self._grown("dropped by the archive", figures.archive_dropped_packets):
            fields = {"new": grown, "total": figures.archive_dropped_packets}
            yield Change("archive_dropped_packets", logging.ERROR, fields)
        if grown := self._grown("checkpoint failures", figures.checkpoint_failures):
            fields = {"new": grown, "total": figures.checkpoint_failures}
            yield Change("checkpoint_failures", logging.ERROR, fields)

    def _alarms(self, now: RunSnapshot) -> Iterator[Change]:
        """What `alarm` sinks raised, and when hooks sampled at their highest rate for it."""
        for worker, slot in now.slots.items():
            for key, total in slot.counters.items():
                if key.name == RAISED and (grown := self._grown(f"{worker} {key}", total)):
                    figures = {
                        part: slot.gauges.get(MetricKey(name, key.labels))
                        for part, name in (("step", STEP), ("value", VALUE), ("expected", EXPECTED))
                    }
                    fields = {"worker": worker, "watcher": key.label("watcher"), **figures}
                    yield Change("alarm", logging.WARNING, {**fields, "new": grown, "total": total})
                elif key.name == OVER and self._grown(f"{worker} {key}", total):
                    fields = {"worker": worker, "watcher": key.label("watcher")}
                    yield Change("alarm_over", logging.INFO, fields)
            raised = slot.gauges.get(IS_RAISED)
            if raised is not None and bool(raised) != self._raised.get(worker, False):
                self._raised[worker] = bool(raised)
                event = "sampling_raised" if raised else "sampling_restored"
                yield Change(event, logging.INFO, {"host": worker})

    def _grown(self, key: str, total: int) -> int:
        grown = increase(total, self._totals.get(key, 0))
        self._totals[key] = total
        return grown


def _worker_fields(slot: SlotSnapshot) -> dict[str, object]:
    fields: dict[str, object] = {
        "worker": slot.name,
        "pid": slot.pid,
        "incarnation": slot.incarnation,
        "restarts": slot.restarts,
    }
    if slot.state in (WorkerState.FAILED, WorkerState.QUARANTINED):
        fields["exit_code"] = slot.exit_code
    return fields
