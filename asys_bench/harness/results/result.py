"""`Result`, schema asys.result/1: everything that one `asys-bench run` found out, as strict JSON.

An old file can be judged again: rounds keep their exact exceedance counts and histograms. Unknown is
null, never zero; there is no NaN and no infinity. All durations and values carry their unit in the
field's or the metric's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from asys_bench.harness.results.result_run import (
    Better,
    CaseStatus,
    CheckResult,
    Floor,
    Instrument,
    Machine,
    Op,
    Part,
    Reason,
    Role,
    RoundStatus,
    RunInfo,
    SuiteInfo,
    TargetKind,
    Validity,
    Verdict,
)

SCHEMA_ID: Final = "asys.result/1"
__all__ = [
    "SCHEMA_ID",
    "Case",
    "CheckResult",
    "Counts",
    "Estimate",
    "Exceedance",
    "Floor",
    "Hdr",
    "Instrument",
    "Integrity",
    "Interval",
    "Machine",
    "MetricSummary",
    "Needs",
    "Noise",
    "Part",
    "Reason",
    "Result",
    "Round",
    "RunInfo",
    "SampleSummary",
    "Subject",
    "SuiteInfo",
    "TargetResult",
    "Validity",
]


class Interval(Part):
    low: float | None = Field(description="null: unbounded below (too few samples)")
    high: float | None = Field(description="null: unbounded above")
    confidence: float = Field(description="two-sided confidence, e.g. 0.95")


class Estimate(Part):
    value: float
    ci: Interval | None = Field(default=None, description="null: shown without an interval (max)")


class Hdr(Part):
    """A log-linear histogram (16 buckets per power of two, as `contracts.stats`), sparse; for plots."""

    unit: str = Field(description="unit of a recorded integer, e.g. `ns`")
    scale: float = Field(description="recorded integer x scale = value in the metric's unit")
    count: int
    maximum: int
    buckets: list[tuple[int, int]] = Field(description="(bucket index, count), ascending")


class Exceedance(Part):
    """Counted at record time, never from a histogram."""

    bound: float = Field(description="in the metric's unit")
    op: Op = Field(description="a sample exceeds when it does not fulfil `sample op bound`")
    n: int = Field(description="samples")
    k: int = Field(description="samples that exceed")


class Integrity(Part):
    """Counted by every consumer inside the timed run, over all groups."""

    offered: int = 0
    delivered: int = 0
    dropped: int = Field(
        default=0, description="refused by a full bus: a named outcome, not a fault"
    )
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    reordered: int = 0
    unaccounted: int = Field(default=0, description="what the bus's own account does not explain")
    allowed_reordered: int = Field(default=0, description="steps back that a redelivery explains")
    allowed_lost: int = Field(
        default=0, description="at_most_once losses that a planned kill explains"
    )
    allowed_duplicated: int = Field(
        default=0, description="redeliveries that a planned kill explains"
    )
    ok: bool = True


class Noise(Part):
    """Evidence of disturbance in one round; null when this machine does not tell."""

    involuntary_switches: int | None = None
    steal_ms: float | None = None
    pressure_ms: float | None = Field(default=None, description="PSI cpu `some` stall time")
    spin_gap_us: float | None = Field(
        default=None, description="longest gap that a spinning thread saw right before the round"
    )
    noisy: bool = False
    evidence: list[str] = Field(default_factory=list, description="which limits were passed")


class SampleSummary(Part):
    """One metric in one round."""

    n: int
    median: float | None = None
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None
    count: int | None = Field(default=None, description="for counts (torn_frames); else null")


class Round(Part):
    index: int = Field(description="0-based within the case")
    order: int = Field(description="position in the whole run, in which rounds were run")
    pid: int | None
    seed: int
    started_s: float = Field(description="seconds after the run's start")
    wall_s: float
    status: RoundStatus = RoundStatus.OK
    error: str | None = None
    warmup_s: float | None = None
    warmup_steady: bool | None = Field(
        default=None, description="steady before `warmup.max_s` ran out"
    )
    n: dict[str, int] = Field(default_factory=dict, description="samples per metric")
    values: dict[str, SampleSummary] = Field(default_factory=dict)
    exceed: dict[str, list[Exceedance]] = Field(default_factory=dict)
    hdr: dict[str, Hdr] = Field(default_factory=dict)
    integrity: Integrity | None = Field(
        default=None, description="null: no transport in this scenario"
    )
    noise: Noise = Field(default_factory=Noise)
    replaced: bool = Field(
        default=False, description="left out for noise evidence; another round stands in its place"
    )


class MetricSummary(Part):
    """One metric over all rounds that count."""

    unit: str
    better: Better
    n: int = Field(description="samples in all")
    rounds: int
    deff: float | None = Field(
        default=None, description="design effect of rounds as clusters, at the p99 exceedance"
    )
    stats: dict[str, Estimate] = Field(
        default_factory=dict,
        description="median, mean, min, max, p50, p90, p99, p99.9, count, rate",
    )
    hdr: Hdr | None = Field(default=None, description="all rounds merged")


class Needs(Part):
    """What would decide an INCONCLUSIVE target."""

    rounds: int | None = Field(default=None, description="further rounds, about; null: not known")
    samples: int | None = None
    advice: str = ""


class TargetResult(Part):
    expr: str = Field(description="as the suite spells it: `hook_latency_ms.p99 <= 0.05`")
    where: str = Field(description="file:line of the target in the suite")
    kind: TargetKind
    method: str = Field(description="how it was decided, in words")
    gated: bool = Field(description="false: shown, but it does not count for the suite's verdict")
    metric: str
    stat: str
    unit: str = Field(description="unit of bound, observed and ci; `x memcpy` for ratios")
    op: Op
    bound: float | None = Field(description="the limit in `unit`")
    reference: str | None = Field(default=None, description="case id that the ratio is to")
    observed: float | None = Field(description="point estimate; null without data")
    ci: Interval | None
    p_value: float | None = Field(default=None, description="of being on the wrong side; for Holm")
    alpha_spent: float = Field(description="of this look")
    look: int = Field(description="1-based planned look that decided, or the last one")
    looks: int = Field(description="planned looks in all")
    margin: float | None = Field(
        description="distance of observed to bound over |bound|; positive is inside, negative outside"
    )
    verdict: Verdict
    reason: str
    needs: Needs | None = None
    points: list[float] = Field(
        default_factory=list,
        description="the statistic (or ratio) of each counted round, in run order",
    )


class Subject(Part):
    """What was measured, exactly."""

    kind: Literal["backend", "pipeline", "scenario"]
    name: str = Field(description="backend name, or pipeline file as the suite names it")
    backend: str | None = Field(default=None, description="bus plugin in use, when there is one")
    params: dict[str, Any] = Field(default_factory=dict)
    pipeline_sha256: str | None = Field(default=None, description="of the resolved configuration")
    build_hashes: dict[str, str] = Field(
        default_factory=dict,
        description="file -> SHA-256 of the plugin's sources and compiled modules",
    )


class Case(Part):
    id: str = Field(description="`bus.one_to_three.throughput[cpp_spmc]`; unique in the result")
    family: str = Field(description="the id in the suite, before the matrix was expanded")
    where: str = Field(description="file:line of the case in the suite")
    role: Role = Role.CASE
    gated: bool = Field(description="false: measured, not judged")
    scenario: str
    subject: Subject
    status: CaseStatus
    reason: str | None = None
    log: str | None = Field(default=None, description="last lines that a crashed round printed")
    rounds: list[Round] = Field(default_factory=list)
    metrics: dict[str, MetricSummary] = Field(default_factory=dict)
    targets: list[TargetResult] = Field(default_factory=list)


class Counts(Part):
    """Gated targets by verdict, and what else there was."""

    passed: int = 0
    failed: int = 0
    inconclusive: int = 0
    invalid: int = 0
    ungated: int = Field(default=0, description="targets that were measured, not judged")
    cases: int = 0
    rounds: int = 0
    replaced_rounds: int = 0


class Result(Part):
    """The whole document."""

    schema_id: Annotated[Literal["asys.result/1"], Field(alias="schema")] = SCHEMA_ID
    run: RunInfo
    machine: Machine
    instrument: Instrument
    checks: list[CheckResult] = Field(default_factory=list)
    validity: Validity
    cases: list[Case] = Field(default_factory=list)
    verdict: Verdict
    exit_code: int
    counts: Counts = Field(default_factory=Counts)
    notes: list[str] = Field(
        default_factory=list,
        description="what a reader should know: replaced rounds, plugins that could not run",
    )

    def to_plain(self) -> dict[str, Any]:
        """As plain JSON-able data under the names of the file."""
        return self.model_dump(mode="json", by_alias=True)
