"""The evidence, family by family: spectra, rounds, and every metric in numbers."""

from __future__ import annotations

from collections.abc import Iterable

from asys_bench.harness.results.result import Case, Estimate, Result
from asys_bench.harness.results.result_run import Role, TargetKind
from asys_bench.reports.bench_findings.finding import findings
from asys_bench.reports.bench_html.round_dots import round_dots
from asys_bench.reports.bench_html.spectrum import Curve, spectrum
from asys_bench.reports.page.markup import Markup, name, table, tag
from asys_bench.reports.page.quantity import NOTHING, number

# Every metric of a family in numbers: statistics with their intervals, and counted events.

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


def evidence(result: Result) -> list[Markup]:
    """A section per family of cases, those with targets first, references last."""
    families: dict[str, list[Case]] = {}
    for case in result.cases:
        families.setdefault(case.family, []).append(case)
    order = sorted(
        families.values(),
        key=lambda cases: (
            all(case.role is not Role.CASE for case in cases),
            not any(case.targets for case in cases),
        ),
    )
    return [_family(cases, result) for cases in order]


def _family(cases: list[Case], result: Result) -> Markup:
    first = cases[0]
    what = first.scenario
    if first.role is not Role.CASE:
        what = f"a {first.role}, to compare with, {what}"
    if first.subject.kind == "pipeline" and len({case.subject.name for case in cases}) == 1:
        what += f", {first.subject.name}"
    figures = [*_spectra(cases, result), *_rounds(cases, result)]
    return tag(
        "section",
        tag("h3", name(first.family)),
        tag("p", what, class_="how"),
        tag("div", *figures, class_="figures") if figures else None,
        metrics_table(cases),
        counts_table(cases),
        _parameters(cases),
        class_="family",
    )


def _parameters(cases: list[Case]) -> Markup | None:
    """What all contenders were given alike, folded away."""
    common = [
        f"{key}: {value}"
        for key, value in sorted(cases[0].subject.params.items())
        if value not in (None, {}, []) and all(c.subject.params.get(key) == value for c in cases)
    ]
    if not common:
        return None
    return tag("details", tag("summary", "parameters"), tag("pre", "\n".join(common)))


def _spectra(cases: list[Case], result: Result) -> Iterable[Markup]:
    by_id = {case.id: case for case in result.cases}
    for metric in dict.fromkeys(key for case in cases for key in case.metrics):
        curves, references, unit = [], dict[str, Case](), ""
        for case in cases:
            summary = case.metrics.get(metric)
            targets = [target for target in case.targets if target.metric == metric]
            for target in targets:
                other = by_id.get(target.reference or "")
                if other is not None and target.kind is not TargetKind.QUANTILE:
                    references[other.id] = other
            if summary is not None and summary.hdr is not None:
                unit = summary.unit
                curves.append(Curve(contender(case), summary.hdr, targets))
        for other in references.values():
            summary = other.metrics.get(metric)
            if curves and summary is not None and summary.hdr is not None:
                curves.append(Curve(other.id, summary.hdr, reference=True))
        drawn = spectrum(f"{metric} by percentile", unit, curves)
        if drawn is not None:
            yield drawn


def _rounds(cases: list[Case], result: Result) -> Iterable[Markup]:
    ids = {case.id for case in cases}
    for finding in findings(result):
        if finding.case.id in ids and (drawn := round_dots(finding)) is not None:
            yield drawn
