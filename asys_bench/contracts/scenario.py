"""The scenario: one way of loading a bus or a pipeline, and what is measured while it runs.

A scenario runs once per round, in a process of its own that holds nothing else. Every scenario:

- records under the metric names that its plugin declares, and nothing else; a duration is recorded
  as an integer of nanoseconds (`Recorder.record`), one sample per event;
- measures a transport from the *intended* time of an event, so that a stalled sender cannot hide a
  delay (coordinated omission), and a hook in a closed loop, because there the model really waits;
- verifies every packet that a consumer sees, inside the timed run, and reports it in `integrity`:
  a torn, lost, duplicated or reordered packet makes the round invalid, however fast it was;
- warms up through `RoundContext.warm_up` and brackets what counts with `RoundContext.timed()`;
- draws randomness from `RoundContext.seed` only;
- forks its helpers before it starts a thread, and leaves no process behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel


class ScenarioOptions(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Base of a scenario's own option model (`cases[].params` in a suite)."""


class MetricKind(StrEnum):
    SAMPLES = "samples"
    """Many samples a round: quantiles, median, mean, min."""
    ROUND = "round"
    """One value a round (throughput): median, mean, min over rounds."""
    COUNT = "count"
    """Events out of opportunities: count, rate."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric; its unit is the suffix of its name (`contracts.scenario.unit_of`)."""

    better: Literal["lower", "higher"]
    kind: MetricKind
    summary: str
    relative_only: bool = False
    """It means something only against a reference (`model_slowdown`)."""


UNITS: Mapping[str, str] = {
    "_gbps": "GB/s",
    "_per_s": "1/s",
    "_ns": "ns",
    "_us": "us",
    "_ms": "ms",
    "_s": "s",
    "_bytes": "B",
    "_ratio": "",
    "_slowdown": "ms",
}
"""Suffix -> unit, first match wins."""

NANOSECONDS: Mapping[str, float] = {"ns": 1.0, "us": 1e-3, "ms": 1e-6, "s": 1e-9}
"""Unit -> what one nanosecond is in it."""


def unit_of(metric: str) -> str:
    """The unit of a metric, by its suffix; empty for counts and ratios."""
    return next((unit for suffix, unit in UNITS.items() if metric.endswith(suffix)), "")


class Recorder(Protocol):
    """Where the samples of one metric go."""

    def record(self, value: int) -> None:
        """One duration in nanoseconds."""

    def extend(self, values_ns: object) -> None:
        """Many durations in nanoseconds (any array-like of integers)."""


@dataclass(slots=True)
class IntegrityCount:
    """Packets over all groups of a round, as its consumers saw them."""

    offered: int = 0
    delivered: int = 0
    dropped: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    reordered: int = 0
    unaccounted: int = 0
    """What the bus's own account does not explain."""
    allowed_lost: int = 0
    """Losses that a kill planned by the scenario explains (at_most_once)."""
    allowed_duplicated: int = 0
    """Redeliveries that a kill planned by the scenario explains (at_least_once)."""
    allowed_reordered: int = 0
    """Steps back in sequence that such redeliveries explain."""

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words; empty when every packet is accounted for."""
        excess = {
            "lost": self.lost - self.allowed_lost,
            "duplicated": self.duplicated - self.allowed_duplicated,
            "torn": self.torn,
            "reordered": self.reordered - self.allowed_reordered,
            "unaccounted": abs(self.unaccounted),
        }
        return [f"{word} {count}" for word, count in excess.items() if count > 0]


@dataclass(frozen=True, slots=True)
class BackendSubject:
    """The bus under test."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)


class RunSettings(Protocol):
    @property
    def drain_timeout_s(self) -> float: ...


class WatchdogSettings(Protocol):
    @property
    def startup_timeout_s(self) -> float: ...


class BusSettings(Protocol):
    @property
    def capacity_bytes(self) -> int: ...


class PipelineConfig(Protocol):
    """What scenarios read of a pipeline's configuration, which is an `asys_bench.config.MasterConfig`."""

    @property
    def run(self) -> RunSettings: ...
    @property
    def watchdog(self) -> WatchdogSettings: ...
    @property
    def bus(self) -> BusSettings: ...
    @property
    def enabled_monitors(self) -> Mapping[str, Any]: ...

    def to_plain(self) -> dict[str, Any]:
        """As plain JSON-able data, under the names that a file uses."""


class RoundContext(Protocol):
    """What a scenario gets for one round."""

    @property
    def seed(self) -> int: ...
    @property
    def samples(self) -> int:
        """How many samples this round should record per metric."""

    @property
    def options(self) -> ScenarioOptions:
        """The plugin's own option model."""

    @property
    def backend(self) -> BackendSubject:
        """Raises ScenarioError when the case names no backend."""

    @property
    def config(self) -> PipelineConfig:
        """The pipeline's configuration, with `run.dir` inside `scratch`. Raises ScenarioError when
        the case names no pipeline."""

    @property
    def scratch(self) -> Path:
        """An empty folder of this round; removed after it."""

    @property
    def integrity(self) -> IntegrityCount: ...

    def recorder(self, metric: str) -> Recorder:
        """Where samples of `metric` go. Raises ScenarioError for one the plugin did not declare."""

    def value(self, metric: str, value: float) -> None:
        """The round's one value of a ROUND metric, in the metric's unit."""

    def count(self, metric: str, events: int, opportunities: int) -> None:
        """A COUNT metric."""

    def warm_up(self, step: Callable[[], float]) -> None:
        """Call `step` until the durations it returns (seconds) are steady or the time is up."""

    def timed(self) -> AbstractContextManager[None]:
        """Brackets what counts: noise evidence is taken over it."""


class ScenarioError(RuntimeError):
    """The round cannot be run as asked; says why and the fix."""


@dataclass(frozen=True)
class ScenarioPlugin:
    """What a scenario module exports as `plugin` (entry point group `asys.scenario`)."""

    name: str
    summary: str
    options: type[ScenarioOptions]
    takes: Literal["backend", "pipeline", "nothing"]
    """What a case with this scenario must name."""
    metrics: Mapping[str, MetricSpec]
    run: Callable[[RoundContext], None]
    """One round; blocks."""
    unavailable: Callable[[], str | None] = lambda: None
    """A reason why it cannot run here (with the fix), or None."""
    unavailable_for: Callable[[ScenarioOptions], str | None] = lambda options: None
    """The same for a case with these options."""


INTEGRITY_METRICS: Mapping[str, MetricSpec] = {
    f"{word}": MetricSpec("lower", MetricKind.COUNT, summary)
    for word, summary in {
        "torn_frames": "packets whose bytes were not those that were sent",
        "lost_packets": "accepted packets that a group never saw",
        "duplicated_packets": "packets that a group saw more than once",
        "reordered_packets": "packets that came before an earlier one of their shard",
        "dropped_packets": "packets refused by a full bus; out of those offered",
    }.items()
}
"""Every scenario with a transport has these; the harness counts them from `integrity`."""
