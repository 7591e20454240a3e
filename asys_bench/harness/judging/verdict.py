"""Verdicts: PASS when the interval lies wholly inside the bound, FAIL when wholly outside. Pure.

Everything else is INCONCLUSIVE, with what would decide it; no data is never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from asys_bench.harness.judging import stats
from asys_bench.harness.judging.evidence import (
    RoundData,
    exceedance_counts,
    pooled_quantile,
    round_value,
)
from asys_bench.harness.planning.plan import Look
from asys_bench.harness.planning.targets import Target
from asys_bench.harness.results.result_run import (
    Op,
    TargetKind,
    Verdict,
)
from asys_bench.reports.page.quantity import brief


@dataclass(frozen=True, slots=True)
class Decision:
    """One target at one look. Values are in the target's unit."""

    verdict: Verdict
    reason: str
    method: str
    observed: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    """Of data this bad or worse if the truth were on the limit (one-sided); for Holm."""
    needs_rounds: int | None = None
    needs_samples: int | None = None
    advice: str = ""
    points: list[float] = field(default_factory=list)
    look: int = 0
    alpha: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """A target with what its contender says about how to decide it."""

    target: Target
    looks: tuple[Look, ...]
    min_events: int = 1000
    floor: float | None = None
    """The instrument's, in the metric's unit."""


def decide(
    question: Question, data: Sequence[RoundData], reference: Sequence[RoundData] = ()
) -> Decision:
    """The decision at the first planned look that decides, or else at the last one reached.

    Only a FAIL is looked at again: rounds go on when it does not stand after Holm's correction, and
    the look with the smallest p-value counts (`holm_keeps` pays for all looks).
    """
    target, looks = question.target, question.looks
    if target.kind is TargetKind.INVARIANT:
        return replace(_invariant(question, data), look=_reached(looks, len(data)))
    floor = question.floor
    if target.reference is None and floor is not None and target.bound < floor:
        reason = (
            f"refused: the limit {target.bound:g} lies below the instrument's floor {floor:.3g}"
        )
        return Decision(Verdict.INCONCLUSIVE, reason, "none", look=0)
    decision: Decision | None = None
    failed: Decision | None = None
    for look in looks:
        if len(data) < look.rounds and decision is not None:
            break
        early = len(data) < look.rounds
        found = _at_look(target, data[: look.rounds], reference, look.alpha)
        decision = replace(found, look=look.number, alpha=look.alpha)
        if early:
            reason = f"{len(data)} rounds, the first planned look is at {look.rounds}"
            missing = look.rounds - len(data)
            return replace(
                decision, verdict=Verdict.INCONCLUSIVE, reason=reason, look=0, needs_rounds=missing
            )
        if decision.verdict is Verdict.PASS and failed is None:
            return decision
        if decision.verdict is Verdict.FAIL and (
            failed is None or _evidence(decision) < _evidence(failed)
        ):
            failed = decision
    assert decision is not None
    return failed or decision


def _evidence(decision: Decision) -> float:
    return 1.0 if decision.p_value is None else decision.p_value


def _at_look(
    target: Target, data: Sequence[RoundData], reference: Sequence[RoundData], alpha: float
) -> Decision:
    if target.kind in (TargetKind.RATIO, TargetKind.BASELINE):
        return _ratio(target, data, reference, alpha)
    if target.stat == "rate":
        return _rate(target, data, alpha)
    if target.quantile is not None:
        return _quantile(target, data, alpha)
    return _location(target, data, alpha)


def _invariant(question: Question, data: Sequence[RoundData]) -> Decision:
    target, method = question.target, f"exact count, n >= {question.min_events}"
    found = [one.values[target.metric] for one in data if target.metric in one.values]
    n, events = sum(part.n for part in found), sum(part.count or 0 for part in found)
    points = [float(part.count or 0) for part in found]
    inside = events == target.bound if target.op is Op.EQUAL else events <= target.bound
    if target.op is Op.AT_LEAST:
        inside = events >= target.bound
    if not found or n == 0:
        return Decision(Verdict.INCONCLUSIVE, "no data", method, needs_samples=question.min_events)
    if not inside:
        return Decision(
            Verdict.FAIL, f"{events} of {n}, wanted {target.op} {target.bound:g}", method,
            float(events), float(events), float(events), 0.0, points=points,
        )  # fmt: skip
    if n < question.min_events:
        reason = f"{events} of {n}: too few opportunities, {question.min_events} are needed"
        return Decision(
            Verdict.INCONCLUSIVE, reason, method, float(events), points=points,
            needs_samples=question.min_events - n,
            needs_rounds=math.ceil((question.min_events - n) / max(1.0, n / len(found))),
        )  # fmt: skip
    return Decision(
        Verdict.PASS, f"{events} of {n}", method, float(events), float(events), float(events),
        1.0, points=points,
    )  # fmt: skip


def _rate(target: Target, data: Sequence[RoundData], alpha: float) -> Decision:
    method = "design-effect-corrected binomial, rounds as clusters"
    found = [p for one in data if (p := one.values.get(target.metric)) is not None and p.n]
    if not found:
        return Decision(Verdict.INCONCLUSIVE, "no data", method)
    counts, sizes = [part.count or 0 for part in found], [part.n for part in found]
    interval = stats.clustered_proportion(counts, sizes, alpha)
    p_value = stats.exceedance_p_value(counts, sizes, target.bound, alpha)
    points = [k / n for k, n in zip(counts, sizes, strict=True)]
    decision = _compare(target.op, target.bound, interval.estimate, interval.low, interval.high)
    return _refuse_deff(
        replace(decision, method=method, p_value=p_value, points=points), interval.deff
    )


def _quantile(target: Target, data: Sequence[RoundData], alpha: float) -> Decision:
    method = (
        "design-effect-corrected binomial on exact exceedances, t-corrected, rounds as clusters"
    )
    assert target.quantile is not None
    counted = exceedance_counts(data, target)
    if counted is None or sum(counted[1]) == 0:
        return Decision(Verdict.INCONCLUSIVE, "no data", method)
    counts, sizes = counted
    # `p99 <= B`: at most 1 % lie above B. `p10 >= B`: at most 10 % lie below B.
    allowed = 1 - target.quantile if target.op is Op.AT_MOST else target.quantile
    share = stats.clustered_proportion(counts, sizes, alpha)
    p_value = stats.exceedance_p_value(counts, sizes, allowed, alpha)
    shown = pooled_quantile(data, target.metric, target.quantile, target.op, alpha)
    observed, low, high = shown if shown is not None else (None, None, None)
    points = [
        value
        for one in data
        if (value := round_value(one, target.metric, target.stat, target.quantile)) is not None
    ]
    words = f"{share.estimate:.2%} beyond the limit, {share.low:.2%}..{share.high:.2%}"
    base = Decision(
        Verdict.INCONCLUSIVE, "", method, observed, low, high, p_value, points=points
    )  # fmt: skip
    if share.high <= allowed:
        decision = replace(base, verdict=Verdict.PASS, reason=f"{words}; allowed {allowed:.2%}")
    elif share.low > allowed:
        decision = replace(base, verdict=Verdict.FAIL, reason=f"{words}; allowed {allowed:.2%}")
    else:
        per_round = sum(sizes) / len(sizes)
        gap = abs(share.estimate - allowed)
        total = None
        if gap > 0:
            z = 2.6
            total = z * z * allowed * (1 - allowed) * share.deff / gap**2
        more = None if total is None else max(1, math.ceil(total / per_round - len(sizes)))
        decision = replace(
            base,
            reason=f"{words} contains the allowed {allowed:.2%}",
            needs_rounds=more,
            needs_samples=None if more is None else math.ceil(more * per_round),
        )
    return _refuse_deff(decision, share.deff)


def _refuse_deff(decision: Decision, deff: float) -> Decision:
    if deff <= stats.MAX_DESIGN_EFFECT:
        return decision
    return replace(
        decision,
        verdict=Verdict.INCONCLUSIVE,
        reason=f"refused: design effect {deff:.1f} > {stats.MAX_DESIGN_EFFECT:g}: rounds disagree "
        "more than samples can make up for",
        advice="find what differs between rounds (noise, layout, warm-up) before gating on it",
        needs_rounds=None,
        needs_samples=None,
    )


def _location(target: Target, data: Sequence[RoundData], alpha: float) -> Decision:
    mean = target.stat == "mean"
    method = "Student t over round means" if mean else "order-statistic interval over rounds"
    values = _round_values(target, data)
    if not values:
        return Decision(Verdict.INCONCLUSIVE, "no data", method)
    span = stats.mean_span(values, alpha) if mean else stats.median_span(values, alpha)
    sign = 1.0 if target.op is Op.AT_MOST else -1.0
    test = stats.mean_p_value if mean else stats.sign_p_value
    p_value = test([sign * value for value in values], sign * target.bound)
    decision = _compare(target.op, target.bound, span.estimate, span.low, span.high)
    return _with_needs(replace(decision, method=method, p_value=p_value, points=values),
                       values, target.bound)  # fmt: skip


def _ratio(
    target: Target, data: Sequence[RoundData], reference: Sequence[RoundData], alpha: float
) -> Decision:
    method = "sign-test interval of per-round ln ratio, interleaved"
    others = {one.block: one for one in reference}
    ratios: list[float] = []
    for one in data:
        other = others.get(one.block)
        value = round_value(one, target.metric, target.stat, target.quantile)
        base = round_value(other, target.metric, target.stat, target.quantile) if other else None
        if value is None or base is None or value <= 0 or base <= 0:
            continue
        limit = target.bound * base + target.offset
        ratios.append(value / base if target.offset == 0 else value / limit)
    if not ratios:
        return Decision(Verdict.INCONCLUSIVE, "no pair of rounds has both sides", method)
    bound = target.bound if target.offset == 0 else 1.0
    span = stats.ratio_span(ratios, [1.0] * len(ratios), alpha)
    sign = 1.0 if target.op is Op.AT_MOST else -1.0
    p_value = stats.sign_p_value([sign * ratio for ratio in ratios], sign * bound)
    decision = _compare(target.op, bound, span.estimate, span.low, span.high)
    return _with_needs(replace(decision, method=method, p_value=p_value, points=ratios),
                       ratios, bound)  # fmt: skip


def _round_values(target: Target, data: Sequence[RoundData]) -> list[float]:
    found = (round_value(one, target.metric, target.stat, target.quantile) for one in data)
    return [value for value in found if value is not None]


def _compare(op: Op, bound: float, estimate: float, low: float, high: float) -> Decision:
    """PASS, FAIL or INCONCLUSIVE by where the interval lies."""
    inside = high <= bound if op is Op.AT_MOST else low >= bound
    outside = low > bound if op is Op.AT_MOST else high < bound
    shown = f"{brief(low, '?')}..{brief(high, '?')}"
    if inside:
        verdict, reason = Verdict.PASS, f"{shown} lies wholly inside {op} {bound:g}"
    elif outside:
        verdict, reason = Verdict.FAIL, f"{shown} lies wholly outside {op} {bound:g}"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, f"{shown} contains the limit {bound:g}"
    return Decision(verdict, reason, "", estimate, _finite(low), _finite(high))


def _with_needs(decision: Decision, values: Sequence[float], bound: float) -> Decision:
    """Rounds that would about decide it: the interval shrinks with the root of their number."""
    if decision.verdict is not Verdict.INCONCLUSIVE or decision.observed is None:
        return decision
    gap = abs(decision.observed - bound)
    n = len(values)
    middle = decision.observed
    spread = sorted(abs(value - middle) for value in values)[n // 2] * 1.4826
    if gap <= 0 or n < 2:
        return decision
    total = max(stats.rounds_to_decide(0.05), math.ceil((1.25 * 2.6 * spread / gap) ** 2))
    return replace(decision, needs_rounds=max(1, total - n))


def _reached(looks: Sequence[Look], rounds: int) -> int:
    return max((look.number for look in looks if look.rounds <= rounds), default=0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
