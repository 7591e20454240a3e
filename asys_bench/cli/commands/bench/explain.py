"""`asys-bench explain`: how one target of a stored result was decided, round by round."""

from __future__ import annotations

import argparse

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.harness.results.result import Case, Result, TargetResult
from asys_bench.harness.results.store import ResultError, read_result
from asys_bench.reports.page.quantity import brief

EXAMPLES = (
    ("asys-bench explain runs/bench/<run> throughput", "the targets with this in case or name"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RESULT and TARGET."""
    parser.add_argument("result", metavar="RESULT", help="result.json, or the folder it is in")
    parser.add_argument("target", metavar="TARGET", help="part of a case id or of a target")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when the result cannot be read or no target matches."""
    try:
        result = read_result(arguments.result)
    except ResultError as error:
        console.print(f"asys-bench explain: {error}", style="red", markup=False)
        return EXIT_USAGE
    found = [
        (case, target)
        for case in result.cases
        for target in case.targets
        if arguments.target in f"{case.id} {target.expr}"
    ]
    if not found:
        known = "\n  ".join(f"{c.id} {t.expr}" for c in result.cases for t in c.targets)
        console.print(
            f"no target matches {arguments.target!r}; there are:\n  {known}", markup=False
        )
        return EXIT_USAGE
    for case, target in found:
        console.print("\n".join(explanation(result, case, target)), markup=False, soft_wrap=True)
    return 0


def explanation(result: Result, case: Case, target: TargetResult) -> list[str]:
    """The lines that explain `target`."""
    judged = "judged" if target.gated else "measured, not judged"
    lines = [
        f"{case.id}: {target.expr}",
        f"  {target.verdict} ({judged}): {target.reason}",
        f"  asked at     {target.where}",
        f"  method       {target.method}",
        f"  observed     {brief(target.observed, 'unknown')} {target.unit}, limit {target.op} "
        f"{brief(target.bound, 'unknown')}, margin {brief(target.margin, 'unknown')}",
    ]
    if target.ci is not None:
        lines.append(
            f"  interval     {brief(target.ci.low, 'unknown')} .. {brief(target.ci.high, 'unknown')} at "
            f"{target.ci.confidence:.2%} (this look's share of the error budget is "
            f"{target.alpha_spent:.4f})"
        )
    lines.append(
        f"  look         {target.look} of {target.looks}; p = {brief(target.p_value, 'unknown')}"
    )
    metric = case.metrics.get(target.metric)
    if metric is not None:
        lines.append(
            f"  samples      {metric.n} in {metric.rounds} rounds, design effect "
            f"{brief(metric.deff, 'unknown')}"
        )
    if target.reference is not None:
        lines.append(f"  against      {target.reference}, interleaved in the same blocks")
    if target.needs is not None:
        lines.append(f"  needs        {target.needs.advice}")
    if target.points:
        values = " ".join(brief(point, "unknown") for point in target.points)
        lines.append(f"  per round    {values}")
    disturbed = [r for r in case.rounds if r.noise.noisy]
    for one in disturbed:
        done = "replaced" if one.replaced else "kept"
        lines.append(f"  noise        round {one.index}: {', '.join(one.noise.evidence)} ({done})")
    if result.notes:
        lines += [f"  note         {note}" for note in result.notes if case.id in note]
    return lines
