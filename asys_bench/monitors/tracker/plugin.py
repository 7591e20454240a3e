"""`TrackerMonitor`: the run in wandb, trackio or MLflow, whichever have a section in its options.

It reads the stats page in a process of its own and puts each reading before one `Feed` per tracker; those
wait for networks, it does not, and neither does the host. The series are those of the TensorBoard files
(`sae_fvu/<hook>`), over `host_step`. Report and summary follow when they are written (`asys-run track`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Self

from pydantic import Field, model_validator

from asys_bench.contracts.monitor import (
    LEAVE_S,
    BaseMonitor,
    MonitorContext,
    MonitorOptions,
    MonitorPlugin,
    Totals,
)
from asys_bench.contracts.run_files import read_run_file
from asys_bench.contracts.stats import RunState
from asys_bench.monitors.figures import RunFigures, figures_of
from asys_bench.monitors.snapshot import take_snapshot
from asys_bench.monitors.tensorboard_files import scalars_of
from asys_bench.monitors.tracker.about import about_run
from asys_bench.monitors.tracker.feed import Feed
from asys_bench.monitors.tracker.mlflow_runs import MLflowOptions, MLflowTracker
from asys_bench.monitors.tracker.tracker import KIND, Point, TrackedRun, Tracker, write_tracked
from asys_bench.monitors.tracker.trackio_runs import TrackioOptions, TrackioTracker
from asys_bench.monitors.tracker.wandb_runs import WandbOptions, WandbTracker
from asys_bench.system.allocator import keep_freed_memory

log = logging.getLogger(__name__)
REFUSED_S = 2.0
"""A tracker whose last answer was an error is waited for no longer than this."""
PACKAGES = ("wandb", "trackio", "mlflow")


class TrackerOptions(MonitorOptions):
    """Options of the `tracker` monitor. Keys and tokens are read from the environment, as each tracker's own
    tools do."""

    interval_s: float = Field(5.0, gt=0, le=3600, description="seconds between two points")
    wandb: WandbOptions | None = Field(
        None, description="Weights & Biases; `{}` takes the defaults. null: not there"
    )
    trackio: TrackioOptions | None = Field(
        None, description="trackio, on this machine; `{}` takes the defaults. null: not there"
    )
    mlflow: MLflowOptions | None = Field(
        None, description="MLflow; `{}` takes the defaults. null: not there"
    )

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if self.wandb is None and self.trackio is None and self.mlflow is None:
            raise ValueError("names no tracker: add wandb: {}, trackio: {} or mlflow: {}")
        return self

    def trackers(self) -> Iterator[Tracker]:
        """One for each section, not opened."""
        if self.wandb is not None:
            yield WandbTracker(self.wandb)
        if self.trackio is not None:
            yield TrackioTracker(self.trackio)
        if self.mlflow is not None:
            yield MLflowTracker(self.mlflow)


class TrackerMonitor(BaseMonitor):
    """See the module."""

    def __init__(self, options: TrackerOptions) -> None:
        self._options = options
        self.interval_s = options.interval_s
        self._feeds: list[Feed] = []
        self._before: RunFigures | None = None
        self._totals = Totals()

    def open(self, context: MonitorContext) -> None:
        """Start the feeds. No network is waited for, and none need be there."""
        self._context = context
        keep_freed_memory()
        document = read_run_file(context.run_dir)
        for tracker in self._options.trackers():
            about = about_run(context.run_dir, document, tracker.service, context.config)
            feed = Feed(tracker, about, self._opened)
            feed.start()
            self._feeds.append(feed)

    def tick(self, state: RunState) -> None:
        """Read the page once; at the run's end wait for the feeds, as long as there is time."""
        figures = figures_of(take_snapshot(self._context.page, self._context.account))
        values = scalars_of(figures, self._before)
        self._before = figures
        point = Point(figures.host.steps, time.time(), values)
        for feed in self._feeds:
            feed.put(point)
        if state is RunState.STOPPED:
            self._end()
        self._publish()

    def close(self) -> None:
        """The threads end with the process: they may be waiting for a network."""
        for feed in self._feeds:
            feed.finish()

    def _end(self) -> None:
        for feed in self._feeds:
            feed.finish()
        given_up = time.monotonic() + REFUSED_S
        while left := [feed for feed in self._feeds if not feed.done]:
            refused = time.monotonic() > given_up and all(feed.is_refused for feed in left)
            if refused or self._context.time_left_s() <= LEAVE_S:
                break
            self._context.heartbeat()
            time.sleep(0.05)
        for feed in self._feeds:
            if not feed.done:
                log.warning(
                    "%s: %d points were not sent in time; metrics.csv has them",
                    feed.service,
                    feed.waiting,
                )

    def _opened(self, tracked: TrackedRun) -> None:
        """In a feed's thread."""
        try:
            write_tracked(self._context.run_dir, tracked)
        except OSError as error:
            log.warning("which run it is at %s is not written: %s", tracked.service, error)
        log.info("%s: run %s of %s %s", tracked.service, tracked.id, tracked.project, tracked.url)

    def _publish(self) -> None:
        slot = self._context.slot
        if slot is None:
            return
        for feed in self._feeds:
            label = {"tracker": feed.service}
            self._totals.count(slot.counter("tracker_points", **label), feed.points)
            self._totals.count(slot.counter("tracker_dropped_points", **label), feed.dropped)
            self._totals.count(slot.counter("tracker_errors", **label), feed.errors)
            slot.gauge("tracker_waiting_points", **label).set(feed.waiting)


def _unavailable() -> str | None:
    if not any(find_spec(name) for name in PACKAGES):
        return "no tracker is installed; pip install 'asys-i[trackers]' (or wandb alone)"
    return None


def _build(options: MonitorOptions) -> TrackerMonitor:
    assert isinstance(options, TrackerOptions)
    return TrackerMonitor(options)


plugin = MonitorPlugin(
    name=KIND,
    summary="the run in wandb, trackio or MLflow: series, configuration, summary and report",
    options=TrackerOptions,
    build=_build,
    unavailable=_unavailable,
)
