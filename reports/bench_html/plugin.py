"""The `html` reporter: one file with plots that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.harness.results.result import Result
from asys_bench.reports.bench_findings.finding import displayable, read
from asys_bench.reports.bench_html.evidence import evidence
from asys_bench.reports.bench_html.header import (
    checks,
    header,
    instrument,
    machine,
    reproduce,
    validity,
)
from asys_bench.reports.bench_html.round_dots import timeline
from asys_bench.reports.bench_html.target_rows import target_rows
from asys_bench.reports.page.markup import POLICY, Markup, flat, tag
from asys_bench.reports.page.style import LAYOUT, MARKS, PALETTE


def render_html(result: Result) -> str:
    """The whole report as one HTML file without script. It loads nothing, so that it opens offline, on a
    phone, in the dark and on paper."""
    result = displayable(result)
    title = f"{result.verdict}: {result.run.suite.name}, A-Sys-I bench report"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(PALETTE + LAYOUT + MARKS)),
    )
    body = tag("body", _patterns(), header(result), tag("main", _sections(result)), _footer(result))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _sections(result: Result) -> Markup:
    lanes = timeline(result)
    order = "Contenders take turns, so that a drift of the machine meets all of them alike."
    rounds = None
    if lanes is not None:
        heading = tag("h2", "Rounds in run order")
        rounds = tag("section", heading, tag("p", order, class_="how"), lanes)
    shown = evidence(result)
    return flat(
        [
            validity(result),
            target_rows(result),
            tag("section", tag("h2", "Evidence"), *shown, id="evidence") if shown else None,
            rounds,
            checks(result),
            machine(result),
            instrument(result),
            reproduce(result),
        ]
    )


def _patterns() -> Markup:
    """The hatching of the forbidden side, used by every chart."""
    stroke = tag("line", x1=0, y1=0, x2=0, y2=7, class_="hatching")
    pattern = tag(
        "pattern", stroke, id="hatch", width=7, height=7, patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )  # fmt: skip
    return tag(
        "svg", tag("defs", pattern), width=0, height=0, class_="patterns", aria_hidden="true"
    )


def _footer(result: Result) -> Markup:
    return tag("footer", f"{result.run.id}, A-Sys-I {result.run.version}, schema asys.result/1")


def render(data: Mapping[str, Any]) -> str:
    """A complete HTML document.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_html(read(data))


plugin = ReporterPlugin(
    name="html",
    summary="one HTML file that opens offline: interval bars, percentile spectra, rounds, machine",
    subject=Subject.BENCH,
    media_type="text/html",
    suffix=".html",
    render=render,
)
