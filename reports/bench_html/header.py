"""The top of the page: the verdict, the run in a sentence, and why it is not valid when it is not."""

from __future__ import annotations

from asys_bench.harness.results.result import Result
from asys_bench.reports.bench_findings.headline import (
    commit_text,
    counts,
    exit_text,
    headline,
    reason_text,
    rounds_text,
)
from asys_bench.reports.bench_html.verdict_mark import icon, mark, verdict_class
from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.page.quantity import duration


def header(result: Result) -> Markup:
    run = result.run
    chips = [tag("li", tag("b", f"{n}"), mark(verdict)) for verdict, n in counts(result).items()]
    facts = (
        ("commit", commit_text(result)),
        ("machine", result.machine.machine_class),
        ("measured", f"{rounds_text(result)}, {duration(run.elapsed_s)}"),
        ("started", run.started.replace("T", " ").replace("+00:00", " UTC")),
        ("exit code", exit_text(result)),
    )
    return tag(
        "header",
        tag("p", "A-Sys-I bench report", class_="eyebrow"),
        tag("h1", icon(result.verdict), tag("b", str(result.verdict)), tag("span", run.suite.name)),
        tag("p", headline(result), class_="headline"),
        tag("ul", *chips, class_="chips") if chips else None,
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"),
        class_=f"hero {verdict_class(result.verdict)}",
    )


def validity(result: Result) -> Markup | None:
    """What makes the run invalid, and what a reader should know."""
    parts = []
    if result.validity.reasons:
        reasons = [tag("li", reason_text(reason)) for reason in result.validity.reasons]
        kind = "callout v-invalid" if not result.validity.valid else "callout"
        heading = "Why it is not valid" if not result.validity.valid else "Remarks on validity"
        parts.append(tag("section", tag("h2", heading), tag("ul", *reasons), class_=kind))
    if result.notes:
        notes = [tag("li", note) for note in result.notes]
        parts.append(tag("section", tag("h2", "Notes"), tag("ul", *notes), class_="callout"))
    return Markup("".join(parts)) if parts else None
