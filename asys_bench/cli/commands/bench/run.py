"""`asys-bench run`: measure a suite and judge it; the exit code is the verdict."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.run.process_state import SignalHandlers

EXAMPLES = (
    ("asys-bench run suites/smoke.yaml", "does everything work; under a minute"),
    ("asys-bench run suites/sla.yaml --only 'host.*'", "some cases and their references"),
    ("asys-bench run smoke.yaml --set defaults.rounds=12 --out runs/bench", "more rounds"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """A suite (or `--config FILE` that names one), `--set`, `--only` and `--out`."""
    parser.add_argument(
        "suite", metavar="SUITE", nargs="?", help="YAML file, or the name of a shipped one"
    )
    parser.add_argument("--config", metavar="FILE", help="a file that names suite and folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="override one field of the suite, e.g. --set defaults.rounds=12 (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB",
        help="measure only the cases that match, with their references (repeatable)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="results go to DIR/<timestamp>-<suite>/")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """The suite's exit code."""
    if (arguments.suite is None) == (arguments.config is None):
        console.print("asys-bench run: give a SUITE, or --config FILE that names one", style="red")
        return EXIT_USAGE
    from asys_bench.cli.bench_config import read_bench_config
    from asys_bench.cli.bench_files import WRITTEN, write_reports
    from asys_bench.harness.planning.suite_file import load_suite, select
    from asys_bench.harness.runner import SuiteRunner
    from asys_bench.reports.bench_terminal.progress import BenchProgress
    from asys_bench.reports.bench_terminal.verdicts import render_terminal

    suite, out, sets = arguments.suite, arguments.out, list(arguments.set)
    formats: tuple[str, ...] = WRITTEN
    if arguments.config is not None:
        config = read_bench_config(arguments.config)
        suite, out = config.suite_path, out or str(config.out)
        sets, formats = [*config.set, *sets], config.reports
    loaded = select(load_suite(suite, sets), arguments.only)
    folder = Path(out or "runs/bench")
    handlers = SignalHandlers((signal.SIGTERM,), _interrupt)
    command = ["asys-bench", *sys.argv[1:]]
    try:
        with BenchProgress(console) as progress:
            result = SuiteRunner(loaded, folder, command, progress).run()
    finally:
        handlers.restore()
    path = folder / result.run.id / "result.json"
    data = result.to_plain()
    console.print(render_terminal(result, console.width))
    for written in write_reports(data, path.parent, formats):
        console.print(f"wrote {written}", markup=False, soft_wrap=True)
    console.print(f"result: {shlex.quote(str(path))}", markup=False, soft_wrap=True)
    return result.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
