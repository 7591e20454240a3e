"""`asys-bench export`: a stored result as CSV, or as asv-like JSON in which lower is better."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.harness.results.store import ResultError, json_schema, read_result, to_asv, to_csv

EXAMPLES = (
    (
        "asys-bench export runs/bench/<run> --format csv --out rounds.csv",
        "a row per case, metric and statistic",
    ),
    ("asys-bench export --format schema", "the JSON Schema of result.json"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RESULT, `--format`, `--out`."""
    parser.add_argument("result", metavar="RESULT", nargs="?", help="result.json, or its folder")
    parser.add_argument("--format", choices=("csv", "asv", "schema"), default="csv",
                        help="schema: the JSON Schema of result.json itself")  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="write it there; default: standard output")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when the result cannot be read."""
    if arguments.format == "schema":
        text = json.dumps(json_schema(), indent=2) + "\n"
    elif arguments.result is None:
        console.print("asys-bench export: give a RESULT", style="red")
        return EXIT_USAGE
    else:
        try:
            result = read_result(arguments.result)
        except ResultError as error:
            console.print(f"asys-bench export: {error}", style="red", markup=False)
            return EXIT_USAGE
        text = to_csv(result) if arguments.format == "csv" else json.dumps(to_asv(result), indent=1)
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    else:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0
