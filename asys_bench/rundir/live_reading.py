"""A live run's figures as a viewer reads them: rates over the last seconds, and what each process takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asys_bench.contracts.stats import RunState
from asys_bench.monitors.figures import RunFigures, figures_of
from asys_bench.monitors.live_view import LiveModel
from asys_bench.monitors.rates import Window, per_second
from asys_bench.monitors.snapshot import RunSnapshot, published_account, take_snapshot
from asys_bench.rundir.attach import AttachedRun
from asys_bench.system.process_usage import process_usage

RATE_SPAN_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a run, compared with one of `RATE_SPAN_S` ago."""

    model: LiveModel
    snapshot: RunSnapshot
    busy: Mapping[str, float]
    """Process -> CPUs that it keeps busy."""
    memory: Mapping[str, int]
    """Process -> resident bytes."""
    ended: bool
    """The run does not change any more."""

    @property
    def hook_share(self) -> float:
        """Share of the host's time that hooks took, as far as our own clock can see it; NaN at first."""
        spent, earlier = (
            sum(hook.latency_ns.total for hook in figures.hooks) / 1e9
            for figures in (self.model.now, self.model.before)
        )
        return per_second(spent, earlier, self.model.seconds)


class RunReader:
    """Reads an attached run again and again; only reads, so that any number may."""

    def __init__(self, run: AttachedRun) -> None:
        self._run = run
        self._window: Window[tuple[RunFigures, dict[str, float]]] = Window(RATE_SPAN_S)
        bus = run.config.get("bus")
        capacity = bus.get("capacity_packets") if isinstance(bus, dict) else None
        self._capacity = capacity if isinstance(capacity, int) and capacity > 0 else None

    def read(self) -> Reading:
        """Everything, once."""
        page = self._run.page
        snapshot = take_snapshot(page, published_account(page))
        figures = figures_of(snapshot)
        usage = {name: process_usage(slot.pid) for name, slot in snapshot.slots.items()}
        cpu = {name: found[0] for name, found in usage.items() if found is not None}
        seconds, (before, cpu_before) = self._window.add(snapshot.time_ns, (figures, cpu))
        nobody = usage.get("host") is None and usage.get("watchdog") is None
        # On the run's own clock: what the wall clock was stepped since then is no time that passed.
        began_ns = self._run.started_unix_ns - page.wall_offset_ns - page.clock_shift_ns
        model = LiveModel(
            self._run.run_id,
            self._run.step_unit,
            max(0.0, (snapshot.time_ns - began_ns) / 1e9),
            figures,
            before,
            seconds,
            self._capacity,
        )
        return Reading(
            model,
            snapshot,
            {
                name: per_second(now, cpu_before[name], seconds)
                for name, now in cpu.items()
                if name in cpu_before
            },
            {name: found[1] for name, found in usage.items() if found is not None},
            nobody or snapshot.state is RunState.STOPPED,
        )
