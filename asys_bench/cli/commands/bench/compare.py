"""`asys-bench compare`: two stored results side by side, labelled "not interleaved"."""

from __future__ import annotations

import argparse

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.harness.results.store import (
    ResultError,
    compare,
    differences,
    markdown_table,
    read_result,
    shown,
)

EXAMPLES = (("asys-bench compare runs/bench/<before> runs/bench/<after>", "case by case"),)


def add(parser: argparse.ArgumentParser) -> None:
    """BEFORE and AFTER."""
    parser.add_argument("before", metavar="BEFORE", help="result.json, or the folder it is in")
    parser.add_argument("after", metavar="AFTER")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when a result cannot be read. It never fails on a difference: it cannot judge one."""
    try:
        before, after = read_result(arguments.before), read_result(arguments.after)
    except ResultError as error:
        console.print(f"asys-bench compare: {error}", style="red", markup=False)
        return EXIT_USAGE
    rows = [
        (row.case, f"{row.metric}.{row.stat}", row.unit, shown(row.before), shown(row.after),
         f"{row.change:+.1%}", row.word)
        for row in compare(before, after)
    ]  # fmt: skip
    head = ("case", "metric", "unit", _label(before.run.commit, before.run.started),
            _label(after.run.commit, after.run.started), "change", "not interleaved")  # fmt: skip
    print(markdown_table(head, rows))
    print()
    for line in differences(before, after):
        print(f"> {line}")
    return 0


def _label(commit: str | None, started: str) -> str:
    return f"{(commit or 'no commit')[:9]} {started[:16]}"
