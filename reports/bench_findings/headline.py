"""The run in a sentence, and the facts that stand beside it."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath

from asys_bench.contracts.exit_codes import MEANINGS
from asys_bench.harness.results.result import CheckResult, Reason, Result
from asys_bench.harness.results.result_run import Level, Verdict
from asys_bench.reports.bench_findings.finding import WORST_FIRST, findings
from asys_bench.reports.page.quantity import duration, some


def counts(result: Result) -> dict[Verdict, int]:
    """Gated targets by verdict, worst first; counted here, from the targets themselves."""
    found = Counter(one.verdict for one in findings(result) if one.gated)
    return {verdict: found[verdict] for verdict in WORST_FIRST if found[verdict]}


def headline(result: Result) -> str:
    """`1 of 4 targets fails, 1 is inconclusive.` and what stands above the targets, if anything."""
    by = counts(result)
    total = sum(by.values())
    if result.verdict is Verdict.REFUSED:
        return "The environment was refused; nothing was measured."
    sentence = f"None of {some(total, 'target')} could be decided." if total else ""
    if not total:
        sentence = "No target was judged: no data is never a pass."
    elif by.get(Verdict.PASS) == total:
        sentence = "The target holds." if total == 1 else f"All {total} targets hold."
    elif len(by) > 1 or Verdict.INCONCLUSIVE not in by:
        words = {
            Verdict.INVALID: ("is invalid", "are invalid"),
            Verdict.FAIL: ("fails", "fail"),
            Verdict.INCONCLUSIVE: ("is inconclusive", "are inconclusive"),
            Verdict.PASS: ("holds", "hold"),
        }
        parts = [f"{n} {words[verdict][n != 1]}" for verdict, n in by.items()]
        sentence = f"Of {some(total, 'target')}, {', '.join(parts)}."
    if not result.validity.valid:
        sentence = f"The measurement cannot be used. {sentence}"
    if result.verdict is Verdict.INTERRUPTED or not result.run.complete:
        sentence = f"Interrupted after {duration(result.run.elapsed_s)}. {sentence}"
    return sentence


def exit_text(result: Result) -> str:
    """`4 (invalid)`."""
    word = MEANINGS.get(result.exit_code)
    return f"{result.exit_code} ({word})" if word else f"{result.exit_code}"


def commit_text(result: Result) -> str:
    """`0123456789ab`, with a word about uncommitted changes; `unknown` outside a git tree."""
    run = result.run
    if run.commit is None:
        return "unknown"
    return run.commit[:12] + (" with uncommitted changes" if run.dirty else "")


def rounds_text(result: Result) -> str:
    """`39 rounds, 1 replaced on noise evidence`."""
    rounds = [found for case in result.cases for found in case.rounds]
    replaced = sum(found.replaced for found in rounds)
    noisy = sum(found.noise.noisy and not found.replaced for found in rounds)
    text = some(len(rounds), "round")
    if replaced:
        text += f", {replaced:,} replaced on noise evidence"
    if noisy:
        text += f", {noisy:,} noisy but kept"
    return text


def reason_text(reason: Reason) -> str:
    """`integrity: bus.throughput[x], round 5: 1 torn frame`; rounds count from 0."""
    place = reason.case or "the whole run"
    if reason.round is not None:
        place += f", round {reason.round}"
    return f"{reason.kind}: {place}: {reason.message}"


def check_word(check: CheckResult) -> str:
    """`ok`, `note`, `warning` or `error`."""
    if check.ok:
        return "ok"
    return "warning" if check.level is Level.WARN else str(check.level)


def checks_in_order(result: Result) -> list[CheckResult]:
    """Failed checks first, the most severe before the others."""
    order = (Level.ERROR, Level.WARN, Level.NOTE)
    return sorted(result.checks, key=lambda check: (check.ok, order.index(check.level)))


@dataclass(frozen=True, slots=True)
class Step:
    what: str
    command: str


def steps(result: Result) -> list[Step]:
    """Check out, look at the machine, run the same command."""
    run, found = result.run, []
    if run.commit is not None:
        what = "the source that was measured"
        if run.dirty:
            what += " (it had uncommitted changes, which are not in this commit)"
        found.append(Step(what, f"git checkout {shlex.quote(run.commit)}"))
    suite = shlex.quote(run.suite.path)
    found.append(Step("is this machine fit? measures nothing", f"asys-bench check {suite}"))
    if run.command:
        # Only its name: the folder it was installed in is of no use on another machine.
        words = [PurePath(run.command[0]).name or run.command[0], *run.command[1:]]
        found.append(Step(f"the same run (seed {run.seed})", shlex.join(words)))
    return found


def shell_lines(result: Result) -> list[str]:
    """A comment and a command in turn."""
    return [line for step in steps(result) for line in (f"# {step.what}", step.command)]
