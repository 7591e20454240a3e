"""A contender: one member of a case's matrix, or a reference of it. What a round runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asys_bench.harness.planning.plan import Look
from asys_bench.harness.planning.suite import NoiseLimits, Warmup
from asys_bench.harness.planning.targets import Target
from asys_bench.harness.results.result_run import Role
from asys_bench.harness.round import RoundSpec


@dataclass(frozen=True)
class PlacedTarget:
    """A target and where the suite says it."""

    target: Target
    where: str
    reference_id: str | None = None
    """The contender that the ratio is to."""


@dataclass(frozen=True)
class Contender:
    """Everything that a round of it needs, and how it is judged."""

    id: str
    family: str
    """The case's id in the suite."""
    where: str
    role: Role
    gated: bool
    scenario: str
    backend: str | None
    pipeline: str | None
    """As the suite names it."""
    pipeline_file: str | None
    """Beside the suite when it is there, else as `asys-run --config` finds it."""
    sets: tuple[str, ...]
    """`path=value` overrides of the pipeline."""
    params: dict[str, Any]
    rounds: int
    looks: tuple[Look, ...]
    samples: int
    warmup: Warmup
    timeout_s: float
    confidence: float
    min_events: int
    noise: NoiseLimits
    python: str | None = None
    """Interpreter of a baseline; None: this one."""
    targets: tuple[PlacedTarget, ...] = ()
    unavailable: str | None = None
    """Why it cannot run here."""
    pipeline_sha256: str | None = None
    bounds: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """metric -> (op, bound): exceedances that a round counts."""

    def round_spec(
        self, seed: int, *, folder: str = "", plugins: Mapping[Any, Sequence[str]] | None = None
    ) -> RoundSpec:
        """One round of it. plugins: the suite's own, by kind."""
        return RoundSpec(
            folder=folder,
            scenario=self.scenario,
            backend=self.backend,
            pipeline=self.pipeline_file,
            sets=list(self.sets),
            params=self.params,
            samples=self.samples,
            seed=seed,
            warmup_max_s=self.warmup.max_s if self.warmup.until == "steady" else 0.0,
            bounds=self.bounds,
            plugins={str(kind): list(places) for kind, places in (plugins or {}).items()},
        )
