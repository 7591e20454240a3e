"""The target grammar: `metric.stat op bound`.

    stat   pN (p50, p99, p99.9) | median | mean | min | count | rate
    op     <= | >= | == (counts only)
    bound  number | k x NAME | k x NAME + number     NAME is a reference of the suite, or `baseline`

Bounds are in the unit that the metric's suffix says. `max` is not in the grammar: the largest of n
samples grows with n, so that a limit on it only measures how long one looked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from asys_bench.config.problems import did_you_mean
from asys_bench.contracts.scenario import MetricKind, MetricSpec, unit_of
from asys_bench.harness.results.result_run import Op, TargetKind

BASELINE = "baseline"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TARGET = re.compile(
    r"\s*(?P<metric>[a-z][a-z0-9_]*)\s*\.\s*(?P<stat>[a-z][a-z0-9.]*)\s*(?P<op><=|>=|==|<|>|=|!=)"
    r"\s*(?P<bound>\S.*?)\s*"
)
_BOUND = re.compile(
    rf"(?P<factor>{_NUMBER})(?:\s*x\s*(?P<reference>[A-Za-z_][A-Za-z0-9_.-]*)"
    rf"(?:\s*\+\s*(?P<offset>{_NUMBER}))?)?"
)
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,4})?)")
_STATS = {
    MetricKind.SAMPLES: ("pN", "median", "mean", "min"),
    MetricKind.ROUND: ("median", "mean", "min"),
    MetricKind.COUNT: ("count", "rate"),
}


class TargetError(ValueError):
    """What is wrong with a target, and the fix."""

    def __init__(self, message: str, fix: str = "", valid: Collection[str] = ()) -> None:
        super().__init__(message)
        self.message, self.fix, self.valid = message, fix, tuple(valid)


@dataclass(frozen=True, slots=True)
class Target:
    """One parsed target. `bound` is a number, or a factor when there is a `reference`."""

    expr: str
    metric: str
    stat: str
    op: Op
    bound: float
    reference: str | None = None
    offset: float = 0.0
    quantile: float | None = None
    """In (0, 1), for pN."""

    @property
    def kind(self) -> TargetKind:
        if self.reference is not None:
            return TargetKind.BASELINE if self.reference == BASELINE else TargetKind.RATIO
        if self.stat == "count":
            return TargetKind.INVARIANT
        if self.quantile is not None or self.stat == "rate":
            return TargetKind.QUANTILE
        return TargetKind.MEDIAN

    @property
    def unit(self) -> str:
        """Of what is shown: the metric's, or `x NAME`; with an offset, `x limit`."""
        if self.reference is None:
            return "" if self.stat in ("count", "rate") else unit_of(self.metric)
        return f"x {self.reference}" if self.offset == 0 else "x limit"


def parse_target(
    text: str, metrics: Mapping[str, MetricSpec], references: Collection[str]
) -> Target:
    """The target in `text`, checked against what the scenario measures.

    Raises:
        TargetError: syntax, unknown metric, stat or reference, or a direction that makes no sense.
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise TargetError(
            "is not `metric.stat op bound`", "write for example `hook_latency_ms.p99 <= 0.05`"
        )
    name, stat = match["metric"], match["stat"]
    spec = metrics.get(name)
    if spec is None:
        hint = did_you_mean(name, metrics) or "use one of the scenario's metrics"
        raise TargetError(f"unknown metric `{name}`", hint, sorted(metrics))
    quantile = _quantile(stat, spec)
    if match["op"] not in tuple(Op):
        raise TargetError(f"unknown operator `{match['op']}`", "", tuple(Op))
    op = Op(match["op"])
    _check_direction(name, stat, op, spec)
    bound = _BOUND.fullmatch(match["bound"])
    if bound is None:
        raise TargetError(
            f"`{match['bound']}` is no bound", "write a number, `k x NAME` or `k x NAME + number`"
        )
    target = Target(
        text.strip(), name, stat, op, float(bound["factor"]), bound["reference"],
        float(bound["offset"] or 0), quantile,
    )  # fmt: skip
    _check_reference(target, spec, references)
    return target


def _quantile(stat: str, spec: MetricSpec) -> float | None:
    """The quantile that `stat` names, or None for another legal stat."""
    match = _QUANTILE.fullmatch(stat)
    valid = _STATS[spec.kind]
    if match is not None and "pN" in valid:
        percent = float(match[1])
        if not 0 < percent < 100:
            raise TargetError(f"`{stat}` is no percentile", "use one above p0 and below p100")
        return percent / 100
    if stat == "max":
        raise TargetError(
            "`max` grows with the number of samples and is shown, never gated",
            "use a high percentile such as p99.9",
        )
    if stat not in valid:
        raise TargetError(f"`{stat}` does not fit a metric of kind `{spec.kind}`", "", valid)
    return None


def _check_direction(name: str, stat: str, op: Op, spec: MetricSpec) -> None:
    if op is Op.EQUAL:
        if stat != "count":
            raise TargetError("`==` is for counts only", "use <= or >=", ("<=", ">="))
        return
    right = Op.AT_MOST if spec.better == "lower" else Op.AT_LEAST
    if op is not right:
        raise TargetError(
            f"`{op}` is the wrong direction: {spec.better} `{name}` is better", f"write {right}"
        )


def _check_reference(target: Target, spec: MetricSpec, references: Collection[str]) -> None:
    if target.reference is None:
        if spec.relative_only:
            raise TargetError(
                f"`{target.metric}` means something only against a reference",
                "write for example `<= 1.03 x no_hook`",
                sorted(references),
            )
        return
    if target.reference not in references:
        hint = did_you_mean(target.reference, references) or "declare it under `references`"
        raise TargetError(f"unknown reference `{target.reference}`", hint, sorted(references))
    if spec.kind is MetricKind.COUNT:
        raise TargetError("counts are compared with numbers, not with references", "write a number")
    if target.bound <= 0:
        raise TargetError("the factor of a reference must be positive", "")
