"""`asys-bench history`: one line per stored run of a folder, oldest first."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.harness.results.result import Result
from asys_bench.harness.results.store import (
    RESULT_FILE,
    ResultError,
    markdown_table,
    read_result,
    shown,
)

EXAMPLES = (
    ("asys-bench history runs/bench", "verdicts of every stored run"),
    ("asys-bench history runs/bench --case bus.one_to_one --metric throughput", "one figure"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """DIR, and what to show."""
    parser.add_argument("folder", metavar="DIR", help="folder of runs, e.g. runs/bench")
    parser.add_argument("--case", help="part of a case id: show its metrics instead of verdicts")
    parser.add_argument("--metric", default="", help="part of a metric's name, with --case")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when there is no result in the folder."""
    results: list[Result] = []
    for path in sorted(Path(arguments.folder).rglob(RESULT_FILE)):
        try:
            results.append(read_result(path))
        except ResultError as error:
            console.print(f"left out: {error}", style="yellow", markup=False)
    if not results:
        console.print(f"no {RESULT_FILE} under {arguments.folder}", style="red", markup=False)
        return EXIT_USAGE
    results.sort(key=lambda result: result.run.started)
    print(_metrics(results, arguments) if arguments.case else _verdicts(results))
    if len({result.machine.identity_sha256 for result in results}) > 1:
        print("\n> not interleaved, and from different machines: compare with care")
    return 0


def _verdicts(results: list[Result]) -> str:
    head = ("started", "suite", "commit", "verdict", "pass", "fail", "inconclusive", "rounds", "s")
    return markdown_table(head, [
        (r.run.started[:19], r.run.suite.name, _commit(r), r.verdict.value, str(r.counts.passed),
         str(r.counts.failed), str(r.counts.inconclusive), str(r.counts.rounds),
         f"{r.run.elapsed_s:.0f}")
        for r in results
    ])  # fmt: skip


def _metrics(results: list[Result], arguments: argparse.Namespace) -> str:
    rows = [
        (r.run.started[:19], _commit(r), case.id, name, metric.unit,
         shown(metric.stats.get("median")), shown(metric.stats.get("p99")))
        for r in results
        for case in r.cases
        if arguments.case in case.id
        for name, metric in case.metrics.items()
        if arguments.metric in name and {"median", "p99"} & set(metric.stats)
    ]  # fmt: skip
    return markdown_table(("started", "commit", "case", "metric", "unit", "median", "p99"), rows)


def _commit(result: Result) -> str:
    if result.run.commit is None:
        return "-"
    return result.run.commit[:9] + ("+" if result.run.dirty else "")
