"""The parts of `result.Result` about the run as a whole: where, on what, with which instrument."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from asys_bench.harness.results.words import Level


class Part(BaseModel):
    """A part of the result: unknown keys are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True)


class SuiteInfo(Part):
    name: str = Field(description="name of the suite, e.g. `smoke`")
    path: str = Field(description="the suite file as the user named it")
    sha256: str = Field(description="SHA-256 of the resolved suite")
    resolved: dict[str, Any] = Field(
        description="the suite with defaults and overrides filled in; enough to judge again"
    )


class RunInfo(Part):
    id: str = Field(description="`<timestamp>-<suite>`, unique in its output folder")
    started: str = Field(description="start, ISO 8601, UTC")
    elapsed_s: float = Field(description="wall time so far, in seconds")
    complete: bool = Field(
        default=False, description="false: interrupted, or still going on (a partial result)"
    )
    command: list[str] = Field(description="the command line, to run it again")
    version: str = Field(description="version of A-Sys-I")
    commit: str | None = Field(description="git commit of the source tree; null outside one")
    dirty: bool | None = Field(description="the source tree had uncommitted changes")
    seed: int = Field(description="seed of plan, payloads and environment lengths")
    suite: SuiteInfo


class Machine(Part):
    machine_class: str = Field(description="as the suite names it, e.g. `bench-2core`")
    identity: dict[str, str | int] = Field(
        description="what does not change between runs: cpu, cores, caches, memory, kernel, versions"
    )
    identity_sha256: str = Field(description="SHA-256 of `identity`; results compare within one")
    state: dict[str, str | int | float | None] = Field(
        description="what does change: governor, turbo, load, free memory, clock source"
    )


class CheckResult(Part):
    name: str
    want: str
    got: str
    ok: bool
    level: Level = Field(description="what a failure means; `error` refuses the run")
    fix: str = Field(default="", description="what to do about it; empty when ok")


class Floor(Part):
    metric: str = Field(
        description="what this instrument cannot resolve below, e.g. `hook_latency_ms`"
    )
    value: float = Field(description="in the metric's unit; targets below it are refused")
    unit: str
    source: str = Field(description="how it was found, e.g. `null backend, p50 of 2000 pushes`")


class Instrument(Part):
    timer: str = Field(description="clock used, e.g. `perf_counter_ns`")
    timer_cost_ns: float = Field(description="median cost of one reading")
    timer_resolution_ns: float = Field(description="smallest step seen")
    floors: list[Floor] = Field(default_factory=list)


class Reason(Part):
    """Why a run or a case is not valid."""

    kind: Literal["crash", "timeout", "integrity", "noise", "environment", "no_data"]
    case: str | None = Field(default=None, description="case id; null: the whole run")
    round: int | None = Field(default=None, description="index of the round in the case")
    message: str


class Validity(Part):
    valid: bool
    reasons: list[Reason] = Field(default_factory=list)
