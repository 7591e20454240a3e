"""Every metric of a family in numbers: statistics with their intervals, and counted events."""

from __future__ import annotations

from asys_bench.harness.results.result import Case, Estimate
from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.page.quantity import NOTHING, number
from asys_bench.reports.page.table import table

STATS = ("median", "mean", "min", "p50", "p90", "p99", "p99.9", "max")
COUNT = "count"


def metrics_table(cases: list[Case]) -> Markup | None:
    """A row per contender and metric, with the statistics that any of them has."""
    measured = [
        (case, metric, summary)
        for case in cases
        for metric, summary in case.metrics.items()
        if COUNT not in summary.stats
    ]
    if not measured:
        return None
    shown = [stat for stat in STATS if any(stat in summary.stats for *_, summary in measured)]
    rows = [
        (
            contender(case),
            metric,
            summary.unit,
            *(_estimate(summary.stats.get(stat)) for stat in shown),
            f"{summary.n:,}",
            NOTHING if summary.deff is None else number(summary.deff, 2),
        )
        for case, metric, summary in measured
    ]
    head = ("contender", "metric", "unit", *shown, "samples", "design effect")
    return table(head, rows, left=3)


def counts_table(cases: list[Case]) -> Markup | None:
    """A row per contender, a column per kind of event, each out of its opportunities."""
    events = dict.fromkeys(
        metric for case in cases for metric, m in case.metrics.items() if COUNT in m.stats
    )
    rows = [
        (contender(case), *(_count(case, event) for event in events))
        for case in cases
        if any(event in case.metrics for event in events)
    ]
    return table(("contender", *events), rows) if rows else None


def contender(case: Case) -> str:
    """`cpp_spmc` of `hook.latency[cpp_spmc]`."""
    rest = case.id.removeprefix(case.family)
    inside = rest.removeprefix("[").removesuffix("]")
    return inside if rest.startswith("[") and inside else case.id


def _count(case: Case, event: str) -> str | Markup:
    summary = case.metrics.get(event)
    found = summary.stats.get(COUNT) if summary is not None else None
    if summary is None or found is None:
        return NOTHING
    return tag("span", f"{found.value:,.0f}", tag("small", f"of {summary.n:,}"))


def _estimate(estimate: Estimate | None) -> str | Markup:
    if estimate is None:
        return NOTHING
    value = number(estimate.value)
    if estimate.ci is None:
        return value
    low, high = ("?" if x is None else number(x) for x in (estimate.ci.low, estimate.ci.high))
    return tag("span", value, tag("small", f"{low} .. {high}"))
