"""The monitor: shows or exports what the stats page and the bus's counters say.

Monitors run in a process of their own under the watchdog, read shared memory only and are never on
a data path: a monitor that hangs or dies changes nothing for the host.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.stats import Counter, RunState, Slot, StatsPage

LEAVE_S = 0.7
"""A monitor that waits for a network leaves that long before the run's deadline, sent or not."""


class MonitorOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a monitor's own option model (`monitors.<name>.options` in YAML)."""


@dataclass(frozen=True)
class MonitorContext:
    """What a monitor gets; everything in it is read-only for it."""

    run_dir: Path
    run_id: str
    page: StatsPage
    account: Callable[[], BusAccount]
    """The bus's counters, now."""
    config: Mapping[str, object]
    """The resolved configuration, as plain data."""
    step_unit: str
    terminal: bool
    """Standard output is a terminal: a live view may be drawn. Otherwise print plain lines, which come out
    on the run's standard error: its standard output is the host's."""
    attempt: int = 0
    """Which life of the run this is; files of the earlier ones are gone on with."""
    first_step: int = 0
    """The host's step at its start."""
    slot: Slot | None = None
    """The monitor's own, for what it counts itself."""
    heartbeat: Callable[[], None] = lambda: None
    """To be called every second or so by a `tick` that takes longer."""
    time_left_s: Callable[[], float] = lambda: float("inf")
    """Until this process must be gone; infinity while the run goes on."""


class BaseMonitor(ABC):
    """One monitor. `open` once, `tick` at its interval, `close` once after the run ended."""

    interval_s: float = 1.0

    @abstractmethod
    def open(self, context: MonitorContext) -> None: ...

    @abstractmethod
    def tick(self, state: RunState) -> None:
        """Read and show. Called every `interval_s`, and a last time when the run has stopped."""

    @abstractmethod
    def close(self) -> None: ...

    def get_heartbeats(self) -> dict[str, float]:
        """Worker name -> seconds since its last heartbeat (infinity before the first)."""
        return heartbeats(self._context.page)

    _context: MonitorContext


class Totals:
    """Totals of this process, added to counters that an earlier process of the same worker has counted in."""

    def __init__(self) -> None:
        self._added: dict[Counter, int] = {}

    def count(self, counter: Counter, total: int) -> None:
        """Add what `total` has grown by since the last call for this counter."""
        counter.add(total - self._added.get(counter, 0))
        self._added[counter] = total


def heartbeats(page: StatsPage) -> dict[str, float]:
    """Slot name -> seconds since its last heartbeat; infinity for a slot that never beat."""
    now = time.monotonic_ns()
    return {name: slot.silence_s(now) for name, slot in page.slots()}


@dataclass(frozen=True)
class MonitorPlugin:
    """What a monitor module exports as `plugin` (entry point group `asys.monitor`)."""

    name: str
    summary: str
    options: type[MonitorOptions]
    build: Callable[[MonitorOptions], BaseMonitor]
    unavailable: Callable[[], str | None] = lambda: None
