"""The targets, worst first: verdict, limit, interval bar and numbers of each."""

from __future__ import annotations

from asys_bench.harness.results.result import Result
from asys_bench.harness.results.words import Verdict
from asys_bench.reports.bench_findings.finding import Finding, findings, unmeasured
from asys_bench.reports.bench_html.interval_bar import interval_bar
from asys_bench.reports.bench_html.verdict_mark import mark, verdict_class
from asys_bench.reports.page.markup import Markup, name, tag


def target_rows(result: Result) -> Markup:
    found = findings(result)
    if not found:
        body = tag("p", "No target was judged. No data is never a pass.", class_="card")
    else:
        body = tag("ol", *(_row(finding) for finding in found), class_="targets")
    how = (
        "Each bar is one target: the dot is the estimate, the box its confidence interval, the "
        "upright line the limit, and the hatched side is forbidden. A target passes when the whole "
        "box lies on the clear side."
    )
    return tag(
        "section", tag("h2", "Targets, worst first"), tag("p", how, class_="how"), body,
        _unmeasured(result), id="targets",
    )  # fmt: skip


def _row(finding: Finding) -> Markup:
    target = finding.target
    interval = finding.interval
    numbers = [
        ("value", finding.value, "strong"),
        (f"interval {finding.confidence}".strip(), interval, ""),
        ("margin", finding.margin, ""),
    ]
    if finding.verdict is Verdict.INCONCLUSIVE:
        numbers.append(("rounds needed", finding.rounds_needed, "strong"))
    cells = [tag("div", tag("dt", k), tag("dd", v, class_=c or None)) for k, v, c in numbers]
    reason = target.reason
    if finding.needs:
        reason = f"{reason}; needs {finding.needs}"
    how = f"{target.method}; look {target.look} of {target.looks}; {target.where}"
    return tag(
        "li",
        tag(
            "div",
            mark(finding.verdict, gated=finding.gated),
            tag("h3", name(finding.case.id)),
            tag("code", target.expr),
            class_="who",
        ),
        interval_bar(finding),
        tag("dl", *cells, class_="numbers"),
        tag("p", reason, tag("span", how, class_="method"), class_="reason"),
        class_=f"card target {verdict_class(finding.verdict)}"
        + ("" if finding.gated else " faint"),
    )


def _unmeasured(result: Result) -> Markup | None:
    """Crashed and unavailable contenders, with the last lines that they printed."""
    found = unmeasured(result)
    if not found:
        return None
    items = []
    for case in found:
        log = None
        if case.log:
            log = tag("details", tag("summary", "last lines printed"), tag("pre", case.log))
        head = (
            tag("code", name(case.id)),
            tag("b", f" {case.status} "),
            case.reason or "no reason given",
        )
        items.append(tag("li", *head, log))
    return tag("div", tag("h3", "Cases without a measurement"), tag("ul", *items), class_="callout")
