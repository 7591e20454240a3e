"""One round, as it runs in a process of its own: `python -m asys_bench.harness.round`.

A `RoundSpec` comes as JSON on standard input; `round.json` and `samples.npz` are left in its folder.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from asys_bench.config import MasterConfig, load_config
from asys_bench.contracts.scenario import (
    NANOSECONDS,
    BackendSubject,
    IntegrityCount,
    MetricKind,
    Recorder,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
    unit_of,
)
from asys_bench.harness.measuring.child import keep_exit_codes
from asys_bench.harness.measuring.noise import NoiseWatch
from asys_bench.harness.measuring.recording import (
    SampleRecorder,
    exceedances,
    histogram,
    in_unit,
    summarise,
)
from asys_bench.harness.plugins import metrics_of, register_extra, scenario_plugin
from asys_bench.harness.results.result import Integrity, Noise, SampleSummary
from asys_bench.system.files.atomic import replace_file

# Warm-up: chunks of work until their durations agree, or the time is up.

WINDOW = 5
TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class WarmupEnd:
    seconds: float
    steady: bool


def is_steady(durations: Sequence[float]) -> bool:
    """The last five durations lie within 15 % of their median, and they no longer fall."""
    if len(durations) < WINDOW:
        return False
    last = list(durations[-WINDOW:])
    middle = sorted(last)[WINDOW // 2]
    falling = all(later < earlier for earlier, later in pairwise(last))
    return not falling and all(abs(value - middle) <= TOLERANCE * middle for value in last)


def warm_up(step: Callable[[], float], max_s: float) -> WarmupEnd:
    """Call `step` (returns the duration of one chunk in seconds) until steady or `max_s` is over."""
    started = time.monotonic()
    durations: list[float] = []
    while True:
        durations.append(step())
        elapsed = time.monotonic() - started
        if is_steady(durations):
            return WarmupEnd(elapsed, True)
        if elapsed >= max_s:
            return WarmupEnd(elapsed, False)


ROUND_FILE, SAMPLES_FILE = "round.json", "samples.npz"


@dataclass(frozen=True)
class RoundSpec:
    """What one round is to do; plain JSON data."""

    folder: str
    """Where its results go."""
    scenario: str
    backend: str | None
    pipeline: str | None
    sets: list[str]
    params: dict[str, Any]
    samples: int
    seed: int
    warmup_max_s: float
    """0: no warm-up."""
    bounds: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    plugins: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class RoundRunner:
    """Implements `contracts.scenario.RoundContext` and turns what was recorded into results."""

    def __init__(self, spec: RoundSpec, plugin: ScenarioPlugin, scratch: Path) -> None:
        self.seed, self.samples, self.scratch = spec.seed, spec.samples, scratch
        self.options: ScenarioOptions = plugin.options.model_validate(spec.params)
        self.integrity = IntegrityCount()
        self._spec = spec
        self._metrics = metrics_of(plugin)
        self._recorders: dict[str, SampleRecorder] = {}
        self._values: dict[str, float] = {}
        self._counts: dict[str, tuple[int, int]] = {}
        self._warmup: WarmupEnd | None = None
        self._noise = Noise()
        self._timed_s = 0.0

    @property
    def backend(self) -> BackendSubject:
        if self._spec.backend is None:
            raise ScenarioError("this case names no backend")
        return BackendSubject(self._spec.backend)

    @property
    def config(self) -> MasterConfig:
        if self._spec.pipeline is None:
            raise ScenarioError("this case names no pipeline")
        sets = [*self._spec.sets, f"run.dir={json.dumps(str(self.scratch / 'runs'))}"]
        return load_config(self._spec.pipeline, sets, env={}).config

    def recorder(self, metric: str) -> Recorder:
        self._known(metric, MetricKind.SAMPLES)
        return self._recorders.setdefault(metric, SampleRecorder())

    def value(self, metric: str, value: float) -> None:
        self._known(metric, MetricKind.ROUND)
        self._values[metric] = value

    def count(self, metric: str, events: int, opportunities: int) -> None:
        self._known(metric, MetricKind.COUNT)
        self._counts[metric] = (events, opportunities)

    def warm_up(self, step: Callable[[], float]) -> None:
        if self._spec.warmup_max_s > 0:
            self._warmup = warm_up(step, self._spec.warmup_max_s)
        for recorder in self._recorders.values():
            recorder.clear()

    @contextmanager
    def timed(self) -> Iterator[None]:
        watch = NoiseWatch()
        yield
        self._noise = watch.stop()
        self._timed_s = watch.wall_s

    def _known(self, metric: str, kind: MetricKind) -> None:
        spec = self._metrics.get(metric)
        if spec is None or spec.kind is not kind:
            raise ScenarioError(f"the plugin declares no metric {metric!r} of kind {kind}")

    def results(self) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
        """(round.json, arrays of samples in each metric's unit)."""
        values: dict[str, SampleSummary] = {}
        exceed, hdr, n, samples = {}, {}, {}, {}
        for metric, recorder in self._recorders.items():
            nanoseconds = recorder.nanoseconds()
            array = in_unit(metric, nanoseconds)
            n[metric], values[metric] = len(array), summarise(array)
            exceed[metric] = exceedances(array, self._spec.bounds.get(metric, ()))
            hdr[metric] = histogram(nanoseconds, NANOSECONDS[unit_of(metric)])
            samples[metric] = array
        for metric, value in self._values.items():
            n[metric] = 1
            values[metric] = SampleSummary(n=1, median=value, mean=value, min=value, max=value)
        faults = self.integrity.faults
        for metric, (events, opportunities) in (self._counts | self._integrity_counts()).items():
            n[metric] = opportunities
            values[metric] = SampleSummary(n=opportunities, count=events)
        document = {
            "pid": os.getpid(),
            "timed_s": self._timed_s,
            "n": n,
            "values": {name: part.model_dump() for name, part in values.items()},
            "exceed": {name: [e.model_dump() for e in found] for name, found in exceed.items()},
            "hdr": {name: part.model_dump() for name, part in hdr.items()},
            "integrity": Integrity(**asdict(self.integrity), ok=not faults).model_dump()
            if self.integrity.offered
            else None,
            "faults": faults,
            "noise": self._noise.model_dump(),
            "warmup_s": self._warmup.seconds if self._warmup else None,
            "warmup_steady": self._warmup.steady if self._warmup else None,
        }
        return document, samples

    def _integrity_counts(self) -> dict[str, tuple[int, int]]:
        if "torn_frames" not in self._metrics:
            return {}
        seen = self.integrity
        return {
            "torn_frames": (seen.torn, seen.delivered),
            "lost_packets": (max(0, seen.lost - seen.allowed_lost), seen.offered),
            "duplicated_packets": (
                max(0, seen.duplicated - seen.allowed_duplicated),
                seen.delivered,
            ),
            "reordered_packets": (
                max(0, seen.reordered - seen.allowed_reordered),
                seen.delivered,
            ),
            "dropped_packets": (seen.dropped, seen.offered),
        }


def run_round(spec: RoundSpec) -> None:
    """Run it and leave its results in `spec.folder`.

    Raises:
        whatever the scenario raises; nothing is written then.
    """
    register_extra(spec.plugins)
    plugin = scenario_plugin(spec.scenario)
    folder = Path(spec.folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch:
        runner = RoundRunner(spec, plugin, Path(scratch))
        plugin.run(runner)
        document, samples = runner.results()
    np.savez(folder / SAMPLES_FILE, **samples)  # type: ignore[arg-type]
    replace_file(folder / ROUND_FILE, json.dumps(document, allow_nan=False).encode(), sync=False)


def main() -> int:
    """Entry point of a fresh round process."""
    keep_exit_codes()
    spec = RoundSpec(**json.load(sys.stdin))
    run_round(spec)
    return 0


if __name__ == "__main__":
    sys.exit(main())
