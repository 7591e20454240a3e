"""The parts of `result.Result` about the run as a whole: where, on what, with which instrument."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Verdict(StrEnum):
    """What one target, or the whole suite, came to. Only PASS is a pass."""

    PASS = "PASS"
    """The interval lies wholly inside the bound."""
    FAIL = "FAIL"
    """The interval lies wholly outside the bound."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The interval contains the bound, or there is too little to say; `needs` tells what is missing."""
    INVALID = "INVALID"
    """What was measured cannot be used: a crash, a timeout, a torn frame, noise."""
    REFUSED = "REFUSED"
    """Suite only: the environment was refused before anything was measured."""
    INTERRUPTED = "INTERRUPTED"
    """Suite only: Ctrl-C; what there is was judged, but the plan was not finished."""


class TargetKind(StrEnum):
    QUANTILE = "quantile"
    MEDIAN = "median"
    RATIO = "ratio"
    INVARIANT = "invariant"
    BASELINE = "baseline"


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


class Op(StrEnum):
    AT_MOST = "<="
    AT_LEAST = ">="
    EQUAL = "=="


class Level(StrEnum):
    """What a failed check does."""

    NOTE = "note"
    WARN = "warn"
    ERROR = "error"
    """The run is refused (exit code 5)."""


class CaseStatus(StrEnum):
    MEASURED = "measured"
    CRASHED = "crashed"
    """A round ended without a result; the other cases went on."""
    TIMEOUT = "timeout"
    INVALID = "invalid"
    """Integrity was broken inside a timed round."""
    UNAVAILABLE = "unavailable"
    """It cannot run on this machine; `reason` has the fix."""
    NOT_RUN = "not_run"
    """The run was interrupted before its first round."""


class RoundStatus(StrEnum):
    OK = "ok"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    INVALID = "invalid"


class Role(StrEnum):
    CASE = "case"
    REFERENCE = "reference"
    """Runs only so that others can be compared with it."""
    BASELINE = "baseline"
    """The same case in another installation, interleaved with it."""


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
