"""The run in a sentence, and the facts that stand beside it."""

from __future__ import annotations

from collections import Counter

from asys_bench.harness.results.result import CheckResult, Reason, Result
from asys_bench.harness.results.words import Level, Verdict
from asys_bench.reports.bench_findings.finding import WORST_FIRST, findings
from asys_bench.reports.page.quantity import duration, some

EXIT_WORDS = {
    0: "pass",
    1: "fail",
    2: "usage or configuration",
    3: "inconclusive",
    4: "invalid",
    5: "environment refused",
    130: "interrupted",
}


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
    word = EXIT_WORDS.get(result.exit_code)
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
