"""`asys-bench run`: measure a suite and judge it; the exit code is the verdict."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from asys_bench.cli.bench_config import read_bench_config
from asys_bench.cli.bench_files import render_report, write_reports
from asys_bench.harness.progress import Silent
from asys_bench.harness.runner import SuiteRunner
from asys_bench.harness.suite_file import load_suite


def add(parser: argparse.ArgumentParser) -> None:
    """A suite (or `--config FILE` that names one), `--set` and `--out`."""
    parser.add_argument(
        "suite", metavar="SUITE", nargs="?", help="YAML file, or the name of a shipped one"
    )
    parser.add_argument("--config", metavar="FILE", help="a file that names suite and folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE",
        help="override one field of the suite, e.g. --set defaults.rounds=12 (repeatable)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="results go to DIR/<timestamp>-<suite>/")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """The suite's exit code."""
    if (arguments.suite is None) == (arguments.config is None):
        console.print("asys-bench run: give a SUITE, or --config FILE that names one", style="red")
        return 2
    suite, out, sets = arguments.suite, arguments.out, list(arguments.set)
    formats: tuple[str, ...] = ()
    if arguments.config is not None:
        config = read_bench_config(arguments.config)
        suite, out = config.suite_path, out or str(config.out)
        sets, formats = [*config.set, *sets], config.reports
    loaded = load_suite(suite, sets)
    folder = Path(out or "runs/bench")
    signal.signal(signal.SIGTERM, _interrupt)
    command = ["asys-bench", *sys.argv[1:]]
    with _Shown(console) as shown:
        progress = shown if console.is_terminal else _Lines(console)
        result = SuiteRunner(loaded, folder, command, progress).run()
    path = folder / result.run.id / "result.json"
    data = result.to_plain()
    console.print(render_report("terminal", data), markup=False, soft_wrap=True)
    for written in write_reports(data, path.parent, formats):
        console.print(f"wrote {written}", markup=False, soft_wrap=True)
    console.print(f"result: {shlex.quote(str(path))}", markup=False, soft_wrap=True)
    return result.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Lines(Silent):
    """Progress where there is no terminal: one line per event worth reading."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class _Shown(Silent):
    """A live bar with the time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.fields[case]}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"), console=console, transient=True,
        )  # fmt: skip
        self._console = console
        self._task = self._bar.add_task("", total=None, case="", left="")

    def __enter__(self) -> _Shown:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def plan(self, rounds: int, cases: int) -> None:
        self._bar.update(self._task, total=rounds)

    def round(self, case: str, done: int, planned: int, left_s: float | None) -> None:
        left = "" if left_s is None else f"about {left_s:.0f} s left"
        name = case.replace("[", r"\[")
        self._bar.update(self._task, completed=done, total=planned, case=name, left=left)

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)
