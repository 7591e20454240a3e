"""From rounds to the result's cases (metrics with intervals, targets with verdicts), and from all targets to
the suite's verdict and exit code: Holm on the FAIL side. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from asys_bench.contracts.exit_codes import (
    EXIT_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_OK,
    EXIT_REFUSED,
)
from asys_bench.contracts.scenario import MetricKind, MetricSpec, unit_of
from asys_bench.harness.judging import stats
from asys_bench.harness.judging.evidence import Floats, RoundData, pooled_quantile, round_value
from asys_bench.harness.judging.verdict import Decision, Question, decide
from asys_bench.harness.measuring.recording import merge_histograms
from asys_bench.harness.planning.contender import Contender, PlacedTarget
from asys_bench.harness.results.result import (
    Case,
    Estimate,
    Interval,
    MetricSummary,
    Needs,
    Round,
    Subject,
    TargetResult,
)
from asys_bench.harness.results.result_run import (
    Better,
    CaseStatus,
    Op,
    RoundStatus,
    TargetKind,
    Verdict,
)


def holm_keeps(
    decisions: Sequence[Decision], looks: Sequence[int], confidence: float
) -> list[bool]:
    """For each decision, whether a FAIL survives Holm's correction over all of them."""
    p_values = [
        min(1.0, (1.0 if d.p_value is None else d.p_value) * count)
        for d, count in zip(decisions, looks, strict=True)
    ]
    return stats.holm(p_values, (1 - confidence) / 2)


def suite_verdict(
    verdicts: Sequence[Verdict],
    *,
    valid: bool,
    interrupted: bool = False,
    refused: bool = False,
    inconclusive_fails: bool = True,
) -> tuple[Verdict, int]:
    """(verdict, exit code) of the run from its gated targets. A suite with none never passes."""
    if refused:
        return Verdict.REFUSED, EXIT_REFUSED
    if interrupted:
        return Verdict.INTERRUPTED, EXIT_INTERRUPTED
    if not valid or Verdict.INVALID in verdicts:
        return Verdict.INVALID, EXIT_INVALID
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL, EXIT_FAILED
    if Verdict.INCONCLUSIVE in verdicts or not verdicts:
        soft = bool(verdicts) and not inconclusive_fails
        return Verdict.INCONCLUSIVE, EXIT_OK if soft else EXIT_INCONCLUSIVE
    return Verdict.PASS, EXIT_OK


SHOWN_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass
class CaseRecord:
    """One contender with its rounds so far."""

    contender: Contender
    metrics: Mapping[str, MetricSpec]
    subject: Subject
    rounds: list[Round] = field(default_factory=list)
    samples: dict[int, Mapping[str, Floats]] = field(default_factory=dict)
    """Round order in the run -> raw samples, while the run goes on."""
    reason: str | None = None
    log: str | None = None
    known: tuple[int, dict[str, MetricSummary]] = (0, {})
    """Metrics as of so many rounds; they change only when a round is added."""
    decided: dict[int, tuple[tuple[int, int], Decision]] = field(default_factory=dict)
    """Place of a target -> (rounds of the case and of its reference, what they decide)."""

    @property
    def status(self) -> CaseStatus:
        if self.contender.unavailable is not None:
            return CaseStatus.UNAVAILABLE
        broken = next((r for r in self.rounds if r.status is not RoundStatus.OK), None)
        if broken is not None:
            return CaseStatus(broken.status.value)
        return CaseStatus.MEASURED if self.rounds else CaseStatus.NOT_RUN

    def counted(self) -> list[RoundData]:
        """The rounds that count, in order."""
        return [
            RoundData.of(found, self.samples.get(found.order))
            for found in self.rounds
            if found.status is RoundStatus.OK and not found.replaced
        ]


def judge(
    records: Mapping[str, CaseRecord], floors: Mapping[str, float], confidence: float
) -> list[Case]:
    """Every case with its metrics and targets judged; FAILs stand after Holm's correction."""
    decisions: dict[tuple[str, int], Decision] = {}
    for name, record in records.items():
        for index in range(len(record.contender.targets)):
            decisions[name, index] = _decided(record, index, records, floors)
    gated = [  # an exact count has no error rate to correct
        (name, index)
        for name, index in decisions
        if records[name].contender.gated
        and records[name].contender.targets[index].target.kind is not TargetKind.INVARIANT
    ]
    kept = holm_keeps(
        [decisions[key] for key in gated],
        [len(records[name].contender.looks) for name, _ in gated],
        confidence,
    )
    for key, stands in zip(gated, kept, strict=True):
        if decisions[key].verdict is Verdict.FAIL and not stands:
            reason = f"{decisions[key].reason}; not a failure after Holm over {len(gated)} targets"
            decisions[key] = replace(
                decisions[key], verdict=Verdict.INCONCLUSIVE, reason=reason,
                advice="run more rounds, or judge fewer targets",
            )  # fmt: skip
    return [
        _case(record, [decisions[name, i] for i in range(len(record.contender.targets))])
        for name, record in records.items()
    ]


def _decided(
    record: CaseRecord, index: int, records: Mapping[str, CaseRecord], floors: Mapping[str, float]
) -> Decision:
    """As `_decide`, which takes milliseconds, once for the same rounds: this is asked after every round."""
    placed = record.contender.targets[index]
    reference = records[placed.reference_id].rounds if placed.reference_id is not None else ()
    rounds = len(record.rounds), len(reference)
    known = record.decided.get(index)
    if known is None or known[0] != rounds:
        known = rounds, _decide(record, placed, records, floors)
        record.decided[index] = known
    return known[1]


def _decide(
    record: CaseRecord,
    placed: PlacedTarget,
    records: Mapping[str, CaseRecord],
    floors: Mapping[str, float],
) -> Decision:
    target, contender = placed.target, record.contender
    if record.status in (CaseStatus.CRASHED, CaseStatus.TIMEOUT, CaseStatus.INVALID):
        return Decision(Verdict.INVALID, record.reason or record.status.value, "none")
    if contender.unavailable is not None:
        return Decision(Verdict.INCONCLUSIVE, f"cannot run here: {contender.unavailable}", "none")
    reference: list[RoundData] = []
    if placed.reference_id is not None:
        other = records[placed.reference_id]
        if other.status not in (CaseStatus.MEASURED, CaseStatus.NOT_RUN):
            why = other.contender.unavailable or other.reason or other.status.value
            return Decision(Verdict.INCONCLUSIVE, f"{placed.reference_id}: {why}", "none")
        reference = other.counted()
    question = Question(target, contender.looks, contender.min_events, floors.get(target.metric))
    return decide(question, record.counted(), reference)


def _case(record: CaseRecord, decisions: Sequence[Decision]) -> Case:
    contender = record.contender
    data = record.counted()
    return Case(
        id=contender.id,
        family=contender.family,
        where=contender.where,
        role=contender.role,
        gated=contender.gated,
        scenario=contender.scenario,
        subject=record.subject,
        status=record.status,
        reason=record.reason or contender.unavailable,
        log=record.log,
        rounds=record.rounds,
        metrics=_metrics(record, data),
        targets=[
            _target(contender, placed, decision)
            for placed, decision in zip(contender.targets, decisions, strict=True)
        ],
    )


def _metrics(record: CaseRecord, data: Sequence[RoundData]) -> dict[str, MetricSummary]:
    if record.known[0] != len(record.rounds):
        found = {
            name: summary
            for name, spec in record.metrics.items()
            if (summary := _metric(name, spec, record, data)) is not None
        }
        record.known = len(record.rounds), found
    return record.known[1]


def _target(contender: Contender, placed: PlacedTarget, decision: Decision) -> TargetResult:
    target = placed.target
    bound = 1.0 if target.offset else target.bound
    interval = None
    if decision.observed is not None and (decision.low is not None or decision.high is not None):
        interval = Interval(
            low=decision.low, high=decision.high, confidence=1 - (decision.alpha or 0.0)
        )
    needs = None
    if decision.verdict is Verdict.INCONCLUSIVE:
        advice = decision.advice or (
            f"about {decision.needs_rounds} rounds more"
            if decision.needs_rounds is not None
            else "no number of rounds is known to decide it"
        )
        needs = Needs(rounds=decision.needs_rounds, samples=decision.needs_samples, advice=advice)
    return TargetResult(
        expr=target.expr,
        where=placed.where,
        kind=target.kind,
        method=decision.method,
        gated=contender.gated,
        metric=target.metric,
        stat=target.stat,
        unit=target.unit,
        op=target.op,
        bound=bound,
        reference=placed.reference_id,
        observed=decision.observed,
        ci=interval,
        p_value=decision.p_value,
        alpha_spent=decision.alpha,
        look=decision.look,
        looks=len(contender.looks),
        margin=_margin(target.op, bound, decision.observed),
        verdict=decision.verdict,
        reason=decision.reason,
        needs=needs,
        points=decision.points,
    )


def _margin(op: Op, bound: float, observed: float | None) -> float | None:
    if observed is None:
        return None
    if op is Op.EQUAL:
        return 0.0 - abs(observed - bound)
    distance = bound - observed if op is Op.AT_MOST else observed - bound
    return distance / abs(bound) if bound else distance


def _metric(
    name: str, spec: MetricSpec, record: CaseRecord, data: Sequence[RoundData]
) -> MetricSummary | None:
    parts = [one.values[name] for one in data if name in one.values]
    n = sum(part.n for part in parts)
    if not parts or n == 0:
        return None
    confidence = record.contender.confidence
    alpha = 1 - confidence
    summary = MetricSummary(unit=unit_of(name), better=Better(spec.better), n=n, rounds=len(parts))
    found = summary.stats
    if spec.kind is MetricKind.COUNT:
        events = [part.count or 0 for part in parts]
        interval = stats.clustered_proportion(events, [part.n for part in parts], alpha)
        found["count"] = Estimate(value=float(sum(events)))
        found["rate"] = _estimate(interval.estimate, interval.low, interval.high, confidence)
        return summary
    for stat in ("median", "mean", "min"):
        values = [v for one in data if (v := round_value(one, name, stat, None)) is not None]
        if values:
            span = stats.mean_span if stat == "mean" else stats.median_span
            interval_ = span(values, alpha)
            found[stat] = _estimate(interval_.estimate, interval_.low, interval_.high, confidence)
    if spec.kind is MetricKind.SAMPLES:
        for label, quantile in SHOWN_QUANTILES.items():
            if n < stats.samples_to_decide(quantile, confidence):
                continue
            pooled = pooled_quantile(data, name, quantile, Op.AT_MOST, alpha)
            if pooled is not None:
                found[label] = _estimate(*pooled, confidence)
        summary.deff = _deff(name, data)
        found["max"] = Estimate(value=max(part.max or 0.0 for part in parts))
        summary.hdr = merge_histograms(
            [r.hdr[name] for r in record.rounds if name in r.hdr and not r.replaced]
        )
    return summary


def _deff(name: str, data: Sequence[RoundData]) -> float | None:
    """Design effect of the share of samples above the pooled p99 (p90 when there are few)."""
    rounds = [one.samples[name] for one in data if len(one.samples.get(name, ()))]
    n = sum(len(values) for values in rounds)
    if len(rounds) < 2:
        return None
    pooled = pooled_quantile(data, name, 0.99 if n >= 1000 else 0.9, Op.AT_MOST, 0.05)
    if pooled is None:
        return None
    counts = [int((values > pooled[0]).sum()) for values in rounds]
    return stats.design_effect(counts, [len(values) for values in rounds])


def _estimate(value: float, low: float | None, high: float | None, confidence: float) -> Estimate:
    finite = [None if v is None or not math.isfinite(v) else v for v in (low, high)]
    return Estimate(value=value, ci=Interval(low=finite[0], high=finite[1], confidence=confidence))
