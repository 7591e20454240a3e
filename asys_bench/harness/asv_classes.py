"""asv benchmark classes from a suite: asv remembers what the harness measures.

asv's timing benchmarks are the only kind that it decides about with statistics, and whose rounds it
interleaves between two commits. So each metric is one of them, timed by a clock of ours that moves
by what the harness measured: the median of one round. asv knows only "lower is better", so a rate
becomes seconds per byte or per operation. `version` is the hash of the case: when what is measured
changes, asv starts a new series instead of showing a jump.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asys_bench.contracts.scenario import MetricKind, unit_of
from asys_bench.harness.measuring.launch import Launcher, launcher_for
from asys_bench.harness.planning.contender import Contender
from asys_bench.harness.planning.plan import seed_of
from asys_bench.harness.planning.suite_file import LoadedSuite, load_suite
from asys_bench.harness.plugins import metrics_of, scenario_plugin
from asys_bench.harness.results.result_run import Role, RoundStatus
from asys_bench.harness.results.store import seconds_each

ROUNDS, REPEAT = 4, 3
"""asv processes, which alternate between the commits, and harness rounds in each. With fewer than
eight samples asv's 99 % interval is unbounded and nothing is ever different; with eight it is their
whole range, and one disturbed round hid a slowdown of 30 %; with twelve it leaves out the extremes."""


class MeasuredClock:
    """A timer for asv that shows what was measured instead of the time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def benchmark_classes(suite: str) -> dict[str, type]:
    """Class name -> asv class, one per case that can run here."""
    loaded = load_suite(suite)
    found = {}
    for contender in loaded.contenders:
        if contender.role is Role.CASE and contender.unavailable is None:
            name = "".join(word.capitalize() for word in re.findall(r"[a-zA-Z0-9]+", contender.id))
            found[name] = _class(name, contender, loaded)
    return found


def _class(name: str, contender: Contender, loaded: LoadedSuite) -> type:
    identity = [contender.scenario, contender.backend, contender.pipeline_sha256,
                contender.params, contender.samples]  # fmt: skip
    clock = MeasuredClock()
    members: dict[str, Any] = {
        "__doc__": f"{contender.id}: the median of a round",
        "__module__": "benchmarks",
        "version": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16],
        "timeout": (REPEAT + 1) * contender.timeout_s + 60,
        "timer": clock,
        "rounds": ROUNDS,
        "repeat": REPEAT,
        "number": 1,
        "min_run_count": 1,
        "warmup_time": 0,
    }
    for metric in _metrics(contender):
        members[f"time_{metric}"] = _benchmark(contender, loaded, metric, clock)
    return type(name, (), members)


def _metrics(contender: Contender) -> list[str]:
    """What the case's targets judge, as far as it has a lower-is-better form; else all that has."""
    able = [
        name
        for name, spec in metrics_of(scenario_plugin(contender.scenario)).items()
        if spec.kind is not MetricKind.COUNT
        and not spec.relative_only
        and seconds_each(1.0, unit_of(name)) is not None
    ]
    judged = {placed.target.metric for placed in contender.targets}
    return [name for name in able if name in judged] or able


def _benchmark(
    contender: Contender, loaded: LoadedSuite, metric: str, clock: MeasuredClock
) -> Callable[[Any], None]:
    rounds = 0

    def measure(self: Any) -> None:
        nonlocal rounds
        launcher = launcher_for(loaded.suite.defaults.process)
        try:
            clock.now_s += _round(launcher, contender, metric, rounds)
        finally:
            launcher.close()
        rounds += 1

    return measure


def _round(launcher: Launcher, contender: Contender, metric: str, index: int) -> float:
    """The metric's median in one round, in seconds (per byte or operation, for a rate).

    Raises:
        RuntimeError: the round crashed, broke integrity or has no such sample; asv then shows the
            benchmark as failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = contender.round_spec(seed_of(0, contender.id, str(index)), folder=folder)
        end = launcher.run(spec, contender.timeout_s)
    if end.status is not RoundStatus.OK or end.document is None:
        raise RuntimeError(f"{contender.id}: {end.status}: {end.error}")
    median = end.document["values"].get(metric, {}).get("median")
    turned = None if median is None else seconds_each(median, unit_of(metric))
    if turned is None:
        raise RuntimeError(f"{contender.id}: no sample of {metric}")
    return turned


def install(namespace: dict[str, Any], suite: str | Path) -> None:
    """Put the classes of `suite` in a benchmark module's namespace."""
    namespace.update(benchmark_classes(str(suite)))
