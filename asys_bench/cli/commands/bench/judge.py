"""`asys-bench judge`: a stored result judged again, by its suite or another; measures nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE

EXAMPLES = (
    ("asys-bench judge runs/bench/<run>", "by its suite as it is today"),
    ("asys-bench judge runs/bench/<run> --suite suites/sla.yaml --out judged.json", "by another"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RESULT, `--suite`, `--set` and `--out`."""
    parser.add_argument("result", metavar="RESULT", help="result.json, or the folder it is in")
    parser.add_argument(
        "--suite", metavar="FILE", help="default: the suite that the result names, as it is today"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="override one field of the suite (repeatable)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="write the judged result there as JSON")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """The suite's exit code by the new verdicts; 2 when a file cannot be used."""
    from asys_bench.harness.judging.outcome import rejudge
    from asys_bench.harness.planning.suite_file import load_suite
    from asys_bench.harness.results.store import ResultError, read_result, write_result
    from asys_bench.reports.bench_terminal.verdicts import render_terminal

    try:
        result = read_result(arguments.result)
    except ResultError as error:
        console.print(f"asys-bench judge: {error}", style="red", markup=False)
        return EXIT_USAGE
    judged = rejudge(result, load_suite(arguments.suite or result.run.suite.path, arguments.set))
    console.print(render_terminal(judged, console.width))
    if arguments.out:
        print(f"wrote {write_result(judged, Path(arguments.out))}")
    return judged.exit_code
