"""Alarms in the stats page: what an `alarm` sink's worker writes, and what a host's loop reads.

The worker writes what an alarm was before it counts it, so that whoever sees the count sees the rest. Reading
is reading memory: it waits for nobody and cannot fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asys_bench.contracts.stats import Counter, Gauge, Slot, StatsPage, split_metric_name

ALARMS = "alarms"
"""Counter: alarms of the worker in this attempt, over all watchers."""
RAISED, STEP, VALUE, EXPECTED = "alarm_raised", "alarm_step", "alarm_value", "alarm_expected"
"""Of each `watcher`. Counter: its alarms. Gauges: host step, value and expected value at the last one."""
OVER = "alarm_over"
"""Of each `watcher`, a counter that is set: what so many of its alarms saw is over, its values are back."""
RECORDING_UNTIL = "alarm_recording_until_ns"
"""Counter that is set: until then (CLOCK_MONOTONIC of the host) hooks sample at their highest rate."""

Place = tuple[Sequence[int] | memoryview, int]
"""Cells of a slot and the number of one: what a host's loop reads without a call."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """What one watcher has raised so far; figures are of its last alarm."""

    watcher: str
    count: int
    step: int
    value: float
    expected: float
    is_over: bool = False
    """Its values have come back since to what they were before that alarm."""


class AlarmsOnPage:
    """A worker's side: the alarms that it raises."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._total = slot.counter(ALARMS)
        self.until = slot.counter(RECORDING_UNTIL)

    def watch(self, watcher: str) -> None:
        """A watcher more; its metrics are there from now on."""
        for name in (RAISED, OVER):
            self._slot.counter(name, watcher=watcher)
        for name in (STEP, VALUE, EXPECTED):
            self._slot.gauge(name, watcher=watcher)

    def raise_one(self, watcher: str, step: int, value: float, expected: float) -> None:
        for name, number in ((STEP, float(step)), (VALUE, value), (EXPECTED, expected)):
            self._slot.gauge(name, watcher=watcher).set(number)
        self._slot.counter(RAISED, watcher=watcher).add()
        self._total.add()

    def is_over(self, watcher: str) -> None:
        """Values of the watcher are back to what they were before its last alarm."""
        raised = self._slot.counter(RAISED, watcher=watcher).value
        self._slot.counter(OVER, watcher=watcher).set(raised)

    @property
    def total(self) -> int:
        return self._total.value


class Alarms:
    """The alarms of a run, for its host's loop: `if observation.alarms: ...`.

    True as soon as there is one; `count` is how many, iteration gives what each watcher raised. They do not
    go away: a loop that acts on each alarm remembers the count that it has seen.
    """

    def __init__(self, page: StatsPage | None = None) -> None:
        slots = [slot for _, slot in page.slots()] if page is not None else []
        self._slots = [slot for slot in slots if ALARMS in slot.metrics()]
        self._totals: list[Place] = [(s.cells, s.counter(ALARMS).cell) for s in self._slots]
        self._kept: list[Alarm] | None = None

    @property
    def count(self) -> int:
        return sum(cells[at] for cells, at in self._totals)

    def __bool__(self) -> bool:
        for cells, at in self._totals:  # noqa: SIM110 - half the time of any() in a host's loop
            if cells[at]:
                return True
        return False

    def __iter__(self) -> Iterator[Alarm]:
        if self._kept is not None:
            yield from self._kept
            return
        for slot in self._slots:
            yield from _raised_in(slot)

    def keep(self) -> None:
        """The page is closed next: from now on these are the alarms."""
        if self._kept is None:
            self._kept, self._totals = list(self), [([self.count], 0)]

    def __repr__(self) -> str:
        shown = ", ".join(f"{one.watcher} at step {one.step}" for one in self)
        return f"<{self.count} alarms{': ' if shown else ''}{shown}>"


def _raised_in(slot: Slot) -> Iterator[Alarm]:
    metrics = slot.metrics()
    for full, metric in metrics.items():
        name, labels = split_metric_name(full)
        if name != RAISED or not isinstance(metric, Counter) or not metric.value:
            continue
        figures = []
        for other in (STEP, VALUE, EXPECTED):
            gauge = metrics.get(full.replace(RAISED, other, 1))
            figures.append(gauge.value if isinstance(gauge, Gauge) else math.nan)
        step = int(figures[0]) if math.isfinite(figures[0]) else 0
        over = metrics.get(full.replace(RAISED, OVER, 1))
        is_over = isinstance(over, Counter) and over.value >= metric.value
        yield Alarm(labels.get("watcher", ""), metric.value, step, figures[1], figures[2], is_over)


def recording_until(page: StatsPage) -> list[Place]:
    """Where each worker that may ask for more samples writes its deadline; empty without an `alarm` sink."""
    found: list[Place] = []
    for _, slot in page.slots():
        metric = slot.metrics().get(RECORDING_UNTIL)
        if isinstance(metric, Counter):
            found.append((slot.cells, metric.cell))
    return found
