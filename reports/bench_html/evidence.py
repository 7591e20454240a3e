"""The evidence, family by family: spectra, rounds, and every metric in numbers."""

from __future__ import annotations

from collections.abc import Iterable

from asys_bench.harness.results.result import Case, Result
from asys_bench.harness.results.words import Role, TargetKind
from asys_bench.reports.bench_findings.finding import findings
from asys_bench.reports.bench_html.metrics_table import contender, counts_table, metrics_table
from asys_bench.reports.bench_html.round_dots import round_dots
from asys_bench.reports.bench_html.spectrum import Curve, spectrum
from asys_bench.reports.page.markup import Markup, name, tag


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
