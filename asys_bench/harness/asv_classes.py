"""asv benchmark classes from a suite: asv remembers what the harness measures.

asv judges by a factor on one number and knows only "lower is better". So each class takes the median
over rounds inside, and a rate is turned into ns per byte or per op. `version` is the hash of the
case: when what is measured changes, asv starts a new series instead of showing a jump.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asys_bench.contracts.scenario import MetricKind, unit_of
from asys_bench.harness.contender import Contender
from asys_bench.harness.export import lower_is_better
from asys_bench.harness.launch import FreshProcess
from asys_bench.harness.plan import seed_of
from asys_bench.harness.plugins import metrics_of, scenario_plugin
from asys_bench.harness.round import RoundSpec
from asys_bench.harness.suite_file import load_suite
from asys_bench.harness.words import Role, RoundStatus

ROUNDS = 7


def benchmark_classes(suite: str, rounds: int = ROUNDS) -> dict[str, type]:
    """Class name -> asv class, one per contender that can run here."""
    found = {}
    for contender in load_suite(suite).contenders:
        if contender.role is Role.CASE and contender.unavailable is None:
            name = "".join(word.capitalize() for word in re.findall(r"[a-zA-Z0-9]+", contender.id))
            found[name] = _class(name, contender, rounds)
    return found


def _class(name: str, contender: Contender, rounds: int) -> type:
    identity = [contender.scenario, contender.backend, contender.pipeline_sha256,
                contender.params, contender.samples, rounds]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    # No setup_cache: asv names a cache by the line its function stands in, so all would share one.
    cache: dict[str, dict[str, float]] = {}
    members: dict[str, Any] = {
        "timeout": rounds * contender.timeout_s + 60,
        "__doc__": f"{contender.id}, median of {rounds} rounds",
        "__module__": "benchmarks",
    }
    for metric, spec in metrics_of(scenario_plugin(contender.scenario)).items():
        turned = lower_is_better(1.0, unit_of(metric))
        if spec.kind is MetricKind.COUNT or spec.relative_only or turned is None:
            continue

        def track(self: Any, metric: str = metric) -> float:
            if not cache:
                cache["values"] = dict(_measure(contender, rounds))
            return cache["values"].get(metric, float("nan"))

        track.version = digest  # type: ignore[attr-defined]
        track.unit = turned[1]  # type: ignore[attr-defined]
        track.timeout = members["timeout"]  # type: ignore[attr-defined]
        members[f"track_{metric}"] = track
    return type(name, (), members)


def _measure(contender: Contender, rounds: int) -> Iterator[tuple[str, float]]:
    """(metric, median over rounds of the round medians, lower is better).

    Raises:
        RuntimeError: a round crashed or broke integrity; asv shows the benchmark as failed.
    """
    medians: dict[str, list[float]] = {}
    launcher = FreshProcess()
    for index in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            warmup = contender.warmup
            end = launcher.run(
                RoundSpec(
                    folder=folder,
                    scenario=contender.scenario,
                    backend=contender.backend,
                    pipeline=contender.pipeline_file,
                    sets=list(contender.sets),
                    params=contender.params,
                    samples=contender.samples,
                    seed=seed_of(0, contender.id, str(index)),
                    warmup_max_s=warmup.max_s if warmup.until == "steady" else 0.0,
                ),
                contender.timeout_s,
            )
        if end.status is not RoundStatus.OK or end.document is None:
            raise RuntimeError(f"{contender.id}: {end.status}: {end.error}")
        for metric, summary in end.document["values"].items():
            if summary["median"] is not None:
                medians.setdefault(metric, []).append(summary["median"])
    for metric, values in medians.items():
        turned = lower_is_better(statistics.median(values), unit_of(metric))
        if turned is not None and np.isfinite(turned[0]):
            yield metric, turned[0]


def install(namespace: dict[str, Any], suite: str | Path) -> None:
    """Put the classes of `suite` in a benchmark module's namespace."""
    namespace.update(benchmark_classes(str(suite)))
