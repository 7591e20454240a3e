"""The `markdown` reporter: a comment for a pull request or `$GITHUB_STEP_SUMMARY`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.harness.results.result import Result
from asys_bench.harness.results.result_run import Verdict
from asys_bench.reports.bench_findings.finding import (
    SYMBOLS,
    Finding,
    displayable,
    findings,
    read,
    unmeasured,
)
from asys_bench.reports.bench_findings.headline import (
    check_word,
    checks_in_order,
    commit_text,
    exit_text,
    headline,
    reason_text,
    rounds_text,
    shell_lines,
)
from asys_bench.reports.page.quantity import duration, number, with_unit

# Text from a result inside GitHub-flavoured Markdown, without becoming Markdown itself.

_SPECIAL = re.compile(r"([\\`*_{}\[\]()|~!])")
_LINKED = re.compile(r"([@#])(?=\w)")
_RUN = re.compile(r"`+")


def prose(text: str) -> str:
    """One line of plain text. An empty comment after @ and # keeps GitHub from linking them:
    a report must not notify whoever a case happens to be named after."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKED.sub(r"\1<!-- -->", _SPECIAL.sub(r"\\\1", line))


def code(text: str) -> str:
    """A code span on one line, also inside a table (where a pipe needs its backslash)."""
    line = " ".join(text.split()).replace("|", "\\|")
    if not line:
        return ""
    fence = "`" * (1 + max((len(run) for run in _RUN.findall(line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in _RUN.findall(text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def render_markdown(result: Result) -> str:
    """GitHub-flavoured Markdown: verdict, targets worst first, why, floor, checks, how to repeat."""
    result = displayable(result)
    sections = [
        _head(result),
        _invalid(result),
        _targets(result),
        _why(result),
        _unmeasured(result),
        _notes(result),
        _instrument(result),
        _checks(result),
        _reproduce(result),
    ]
    return "\n\n".join("\n".join(lines) for found in sections if (lines := list(found))) + "\n"


def _head(result: Result) -> Iterator[str]:
    run = result.run
    symbol = SYMBOLS.get(result.verdict, "")
    yield f"## {symbol} {result.verdict}: {prose(run.suite.name)}"
    yield ""
    yield f"**{prose(headline(result))}**"
    yield ""
    yield (
        f"Commit {code(commit_text(result))}, machine class {code(result.machine.machine_class)}, "
        f"{rounds_text(result)}, {duration(run.elapsed_s)}, exit code {exit_text(result)}."
    )


def _invalid(result: Result) -> Iterator[str]:
    if result.validity.reasons:
        yield "**Not valid because**"
        yield ""
    for reason in result.validity.reasons:
        yield f"- {prose(reason_text(reason))}"


def _targets(result: Result) -> Iterator[str]:
    found = findings(result)
    if not found:
        return
    yield row("verdict", "case", "target", "value", "interval", "margin", "rounds still needed")
    yield row(*["---"] * 3, *["---:"] * 4)
    for finding in found:
        yield row(
            _verdict(finding),
            code(finding.case.id),
            code(finding.target.expr),
            prose(finding.value),
            prose(finding.interval),
            prose(finding.margin),
            finding.rounds_needed,
        )
    if any(not finding.gated for finding in found):
        yield ""
        yield "Verdicts in parentheses are measured, not judged."


def _verdict(finding: Finding) -> str:
    text = f"{SYMBOLS.get(finding.verdict, '')} {finding.verdict}"
    return f"**{text}**" if finding.gated else f"({text})"


def _why(result: Result) -> Iterator[str]:
    found = [finding for finding in findings(result) if finding.verdict is not Verdict.PASS]
    if found:
        yield "**Why**"
        yield ""
    for finding in found:
        needs = f" Needs {finding.needs}." if finding.needs else ""
        yield (
            f"- {finding.verdict} {code(finding.case.id)} {code(finding.what)}: "
            f"{prose(finding.target.reason)}.{prose(needs) and ' ' + prose(needs)}"
        )


def _unmeasured(result: Result) -> Iterator[str]:
    found = unmeasured(result)
    if found:
        yield "**Cases without a measurement**"
        yield ""
    for case in found:
        yield f"- {code(case.id)} {prose(str(case.status))}: {prose(case.reason or 'no reason given')}"


def _notes(result: Result) -> Iterator[str]:
    if result.notes:
        yield "**Notes**"
        yield ""
    for note in result.notes:
        yield f"- {prose(note)}"


def _instrument(result: Result) -> Iterator[str]:
    found = result.instrument
    yield (
        f"**Instrument**: {code(found.timer)}, {number(found.timer_cost_ns)} ns a reading, "
        f"{number(found.timer_resolution_ns)} ns resolution."
    )
    if found.floors:
        yield ""
        yield row("metric", "floor", "found by")
        yield row("---", "---:", "---")
    for floor in found.floors:
        value = with_unit(number(floor.value), floor.unit)
        yield row(code(floor.metric), prose(value), prose(floor.source))


def _checks(result: Result) -> Iterator[str]:
    if not result.checks:
        return
    yield row("environment check", "", "wanted", "found", "fix")
    yield row(*["---"] * 5)
    for check in checks_in_order(result):
        word = check_word(check)
        yield row(
            code(check.name),
            word if check.ok else f"**{word}**",
            prose(check.want),
            prose(check.got),
            prose(check.fix) if not check.ok else "",
        )


def _reproduce(result: Result) -> Iterator[str]:
    yield "**How to reproduce**"
    yield ""
    yield block("\n".join(shell_lines(result)), "sh")


def render(data: Mapping[str, Any]) -> str:
    """GitHub-flavoured Markdown.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_markdown(read(data))


plugin = ReporterPlugin(
    name="markdown",
    summary="Markdown for a pull request or $GITHUB_STEP_SUMMARY: targets, floor, checks, commands",
    subject=Subject.BENCH,
    media_type="text/markdown",
    suffix=".md",
    render=render,
)
