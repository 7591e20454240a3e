"""`asys-bench report`: a stored result as a document, through the reporter plugins."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from asys_bench.cli.bench_files import render_report
from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.contracts.reporter import ReportError
from asys_bench.harness.results.store import ResultError, read_data
from asys_bench.registry import PluginError

SUMMARY = "GITHUB_STEP_SUMMARY"


EXAMPLES = (
    ("asys-bench report runs/bench/<run>", "in the terminal, worst first"),
    ("asys-bench report runs/bench/<run> --format html --out report.html", "as a page"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RESULT, `--format` and `--out`."""
    parser.add_argument("result", metavar="RESULT", help="result.json, or the folder it is in")
    parser.add_argument("--format", default="terminal", help="html | md | junit | json | terminal")
    parser.add_argument("--out", metavar="FILE", help="write it there; default: standard output")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when result or format cannot be used."""
    try:
        text = render_report(arguments.format, read_data(arguments.result))
    except (ResultError, ReportError, PluginError) as error:
        console.print(f"asys-bench report: {error}", style="red", markup=False)
        return EXIT_USAGE
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
    else:
        print(text)
    summary = os.environ.get(SUMMARY)
    if summary and arguments.format in ("md", "markdown"):
        with Path(summary).open("a", encoding="utf-8") as page:
            page.write(text + "\n")
    return 0
