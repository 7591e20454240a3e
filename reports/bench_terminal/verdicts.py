"""`render_terminal`: a line per target, worst first, and why. Readable at 80 columns; no I/O."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from asys_bench.harness.results.result import Result
from asys_bench.harness.results.result_run import Verdict
from asys_bench.monitors.readable import tail_text
from asys_bench.reports.bench_findings.finding import Finding, displayable, findings, unmeasured
from asys_bench.reports.bench_findings.headline import (
    checks_in_order,
    commit_text,
    exit_text,
    headline,
    reason_text,
    rounds_text,
    steps,
)
from asys_bench.reports.page.quantity import duration, number, with_unit

TARGET_COLUMNS = 28
"""A longer target is folded."""
STYLES = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.INVALID: "bold magenta",
    Verdict.REFUSED: "bold magenta",
    Verdict.INTERRUPTED: "bold yellow",
}
VERDICT_COLUMNS = len(Verdict.INCONCLUSIVE) + 2


def render_terminal(result: Result, width: int = 100) -> RenderableType:
    """The whole report for a console of `width` columns."""
    result = displayable(result)
    found = findings(result)
    parts: list[RenderableType] = [_title(result), *_validity(result)]
    if found and (room := _room(found, width)) >= _longest(found, room):
        parts += [Text(), _table(found, room)]
        parts += [line for finding in found for line in _why(finding)]
    elif found:
        parts += [Text(), _records(found, width)]
    parts += [*_unmeasured(result), *_notes(result), Text(), _instrument(result)]
    parts += [*_checks(result), *_reproduce(result)]
    return Group(*parts)


def render_text(result: Result, width: int = 100) -> str:
    """Plain text without escape codes."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False)
    console.print(render_terminal(result, width), crop=False, soft_wrap=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _title(result: Result) -> RenderableType:
    style = STYLES.get(result.verdict, "bold")
    title = Text.assemble((f"{result.verdict}  ", style), (result.run.suite.name, "bold"), "  ")
    title.append(headline(result))
    machine = result.machine.machine_class
    facts = f"{rounds_text(result)} in {duration(result.run.elapsed_s)} on {machine}, commit "
    facts += f"{commit_text(result)}, exit code {exit_text(result)}"
    return Group(Rule(style=style), title, Text(facts, "dim"), Rule(style="dim"))


def _validity(result: Result) -> list[RenderableType]:
    if result.validity.valid:
        return [Text.assemble(("valid    ", "bold"), ("VALID", "green"))]
    lines = [Text.assemble(("valid    ", "bold"), ("NOT VALID", "bold magenta"))]
    return [*lines, *(_item(reason_text(r), "magenta") for r in result.validity.reasons)]


def _room(found: list[Finding], width: int) -> int:
    """Columns left for the case on a line that holds everything else."""
    beside = [len(_verdict(one)) + TARGET_COLUMNS + len(" rounds") for one in found]
    numbers = [(len(_value(one)), len(one.interval), len(one.margin)) for one in found]
    widest: list[int] = [max(column) for column in zip(*numbers, strict=True)]
    return width - max(beside) - sum(widest) - 6


def _longest(found: list[Finding], room: int) -> int:
    return max(len(line) for one in found for line in _broken(one.case.id, room).split("\n"))


def _value(finding: Finding) -> str:
    """Without the reference's name, which the target beside it says."""
    if finding.target.reference is None:
        return finding.value
    return finding.value.removesuffix(finding.target.unit.removeprefix("x ")).rstrip()


def _table(found: list[Finding], room: int) -> Table:
    made = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
        header_style="bold", border_style="dim",
    )  # fmt: skip
    made.add_column("verdict", no_wrap=True)
    made.add_column("case", overflow="fold", ratio=1)
    made.add_column("target", max_width=TARGET_COLUMNS, overflow="fold")
    for title in ("value", "interval", "margin", "rounds\nneeded"):
        made.add_column(title, justify="right", no_wrap=True)
    for finding in found:
        # As Text: a cell that is a string would be read as markup, `[cpp_spmc]` and all.
        cells = (finding.interval, finding.margin, finding.rounds_needed)
        made.add_row(
            _verdict(finding),
            Text(_broken(finding.case.id, room)),
            Text(finding.target.expr),
            Text(_value(finding), "bold"),
            *(Text(cell) for cell in cells),
        )
    return made


def _broken(case: str, room: int) -> str:
    """A case id that does not fit is broken before its contender, not in the middle of a word."""
    return case if len(case) <= room else case.replace("[", "\n[", 1)


def _records(found: list[Finding], width: int) -> Table:
    """Three short lines a target, where one long line does not fit."""
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_column(no_wrap=True, min_width=VERDICT_COLUMNS)
    made.add_column(overflow="fold", ratio=1)
    room = width - VERDICT_COLUMNS - 1
    for finding in found:
        interval = f"  [{finding.interval}]" if finding.target.ci else ""
        numbers = Text.assemble(f"{finding.what}  ", (finding.value, "bold"), interval)
        against = Text(f"limit {finding.limit}", "dim")
        if finding.target.margin is not None:
            against.append(f", {finding.margin}")
        if finding.rounds_needed not in ("-", "?"):
            against.append(f", {finding.rounds_needed} rounds still needed")
        lines = [Text(tail_text(finding.case.id, room), "bold"), numbers, against]
        if finding.verdict is not Verdict.PASS:
            lines.append(Text(_reason(finding, rounds=False), "dim"))
        made.add_row(_verdict(finding), Group(*lines))
    return made


def _verdict(finding: Finding) -> Text:
    if finding.gated:
        return Text(finding.verdict, STYLES.get(finding.verdict, ""))
    return Text(f"({finding.verdict})", "dim")


def _reason(finding: Finding, *, rounds: bool) -> str:
    reason = finding.target.reason
    known = finding.target.needs is not None and finding.target.needs.rounds is not None
    if finding.needs and (rounds or not known):
        reason += f"; needs {finding.needs}"
    return reason if finding.gated else f"measured, not judged: {reason}"


def _why(finding: Finding) -> list[RenderableType]:
    if finding.verdict is Verdict.PASS:
        return []
    head = (f"{finding.verdict} ", STYLES.get(finding.verdict, "") if finding.gated else "dim")
    where = f"{finding.case.id} {finding.what}: "
    return [Text.assemble(head, where, (_reason(finding, rounds=True), "dim"))]


def _unmeasured(result: Result) -> list[RenderableType]:
    found = unmeasured(result)
    head: list[RenderableType] = [Text(), Text("cases without a measurement", "bold")]
    lines = (f"{case.id}: {case.status}: {case.reason or 'no reason given'}" for case in found)
    return [*head, *(_item(line, "yellow") for line in lines)] if found else []


def _notes(result: Result) -> list[RenderableType]:
    if not result.notes:
        return []
    return [Text(), Text("notes", "bold"), *(_item(note) for note in result.notes)]


def _instrument(result: Result) -> Text:
    found = result.instrument
    text = Text.assemble(("floor    ", "bold"), f"{found.timer} {number(found.timer_cost_ns)} ns")
    for floor in found.floors:
        text.append(f"  {floor.metric} ").append(with_unit(number(floor.value), floor.unit))
        text.append(f" ({floor.source})", "dim")
    return text


def _checks(result: Result) -> list[RenderableType]:
    if not result.checks:
        return []
    failed = [check for check in checks_in_order(result) if not check.ok]
    good = len(result.checks) - len(failed)
    lines: list[RenderableType] = [
        Text.assemble(("checks   ", "bold"), f"{good} of {len(result.checks)} as wanted")
    ]
    for check in failed:
        style = "bold red" if check.level == "error" else "yellow"
        text = Text.assemble((f"{check.level} ", style), check.name)
        text.append(f": want {check.want}, got {check.got}").append(
            f"; fix: {check.fix}" if check.fix else "", "cyan"
        )
        lines.append(Padding(text, (0, 0, 0, 2)))
    return lines


def _reproduce(result: Result) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(), Text("run it again", "bold")]
    for step in steps(result):
        # Not wrapped by us: a command must survive being copied from the screen.
        command = Text(f"  {step.command}", "cyan", no_wrap=True, overflow="ignore")
        lines += [Text(f"# {step.what}", "dim"), command]
    return lines


def _item(text: str, style: str = "") -> Padding:
    return Padding(Text(" ".join(text.split()), style), (0, 0, 0, 2))
