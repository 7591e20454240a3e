"""The top of the page: the verdict, the run in a sentence, and why it is not valid when it is not."""

from __future__ import annotations

from asys_bench.harness.results.result import CheckResult, Result
from asys_bench.reports.bench_findings.headline import (
    check_word,
    checks_in_order,
    commit_text,
    counts,
    exit_text,
    headline,
    reason_text,
    rounds_text,
    steps,
)
from asys_bench.reports.bench_html.target_rows import icon, mark, verdict_class
from asys_bench.reports.page.markup import Child, Markup, table, tag
from asys_bench.reports.page.quantity import NOTHING, duration, exact, number, with_unit


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


def checks(result: Result) -> Markup | None:
    if not result.checks:
        return None
    items = [_check(check) for check in checks_in_order(result)]
    heading = tag("h2", "Environment checks")
    return tag("section", heading, tag("ul", *items, class_="checks card"))


def _check(check: CheckResult) -> Markup:
    word = check_word(check)
    fix = (
        tag("p", tag("b", "Fix: "), check.fix, class_="fix") if check.fix and not check.ok else None
    )
    numbers = tag("span", f"wanted {check.want}, found {check.got}")
    return tag(
        "li",
        tag("b", word, class_=f"level level-{word}"),
        tag("div", tag("code", check.name), " ", numbers, fix),
    )


def machine(result: Result) -> Markup:
    found = result.machine
    identity = [(name, _plain(value)) for name, value in found.identity.items()]
    state = [(name, _plain(value)) for name, value in found.state.items()]
    identity.append(("identity", found.identity_sha256[:16]))
    return tag(
        "section",
        tag("h2", "Machine"),
        tag(
            "div",
            _facts(f"{found.machine_class}: what stays", identity),
            _facts("what changes, at the start of the run", state),
            class_="pair",
        ),
    )


def instrument(result: Result) -> Markup:
    found = result.instrument
    facts = [
        ("timer", found.timer),
        ("cost of a reading", f"{number(found.timer_cost_ns)} ns"),
        ("resolution", f"{number(found.timer_resolution_ns)} ns"),
    ]
    floors = [
        (tag("code", floor.metric), floor.source, with_unit(number(floor.value), floor.unit))
        for floor in found.floors
    ]
    note = "Below its floor a metric is not the system but the harness; targets there are refused."
    return tag(
        "section",
        tag("h2", "Instrument"),
        tag("p", note, class_="how"),
        _facts("", facts),
        table(("metric", "found by", "floor"), floors, left=2) if floors else None,
    )


def reproduce(result: Result) -> Markup:
    run = result.run
    lines: list[Child] = []
    for step in steps(result):
        lines += [tag("span", f"# {step.what}\n", class_="comment"), f"{step.command}\n"]
    facts = [
        ("suite", run.suite.path),
        ("suite SHA-256", run.suite.sha256[:16]),
        ("A-Sys-I", run.version),
        ("seed", str(run.seed)),
        ("run", run.id),
    ]
    return tag(
        "section",
        tag("h2", "How to reproduce"),
        tag("pre", *lines, class_="card"),
        _facts("", facts),
    )


def _facts(title: str, facts: list[tuple[str, str]]) -> Markup:
    cells = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    heading = tag("h3", title) if title else None
    return tag("div", heading, tag("dl", *cells, class_="facts"), class_="card")


def _plain(value: str | float | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return exact(float(f"{value:.4g}"))
    return f"{value:,}" if isinstance(value, int) else value or NOTHING
