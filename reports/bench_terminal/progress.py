"""`BenchProgress`: the bar at the bottom of the screen while a bench runs; the runner drives it.

It draws when it is told something and never in between: no thread, no timer. A bar that redraws ten
times a second would run on the cores that are being measured, and a thread must not be alive when the
runner forks. A round is therefore announced before it starts, and nothing happens until it is over.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from asys_bench.monitors.readable import tail_text
from asys_bench.reports.page.quantity import duration

BESIDE_NAME = 52
"""Columns beside the case's name: round, bar, share, time left."""
LOG_LINES = 20
"""On a console that is no terminal (a CI log): a plain line about every twentieth of the rounds."""


class BenchProgress:
    """A `Progress` of `asys_bench.harness.runner`; use it as a context manager around the run.

    with BenchProgress() as progress:
        result = SuiteRunner(loaded, folder, command, progress).run()
    """

    def __init__(self, console: Console | None = None) -> None:
        """`console`: standard error by default, so that standard output holds the report only."""
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._lines = 0
        self._done = 0
        self._bar = Progress(
            TextColumn("{task.fields[case]}", markup=False),
            TextColumn("{task.fields[round]}", style="dim", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[left]}", style="cyan", markup=False),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("bench", total=None, case="starting", round="", left="")

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()

    def plan(self, rounds: int, cases: int) -> None:
        """So many rounds are planned in all, more after a look that did not decide."""
        self._bar.update(self._task, total=rounds)
        self._lines = self._done * LOG_LINES // max(1, rounds)
        self._refresh()

    def round(self, case: str, done: int, planned: int, left_s: float | None) -> None:
        """The next round, of `case`, is about to start; `done` of `planned` are over."""
        self._done = done
        left = "" if left_s is None else f"about {duration(left_s)} left"
        number = f"round {done + 1}/{max(planned, done + 1)}"
        name = tail_text(case, max(12, self._console.width - BESIDE_NAME))
        self._bar.update(
            self._task, completed=done, total=planned, case=name, round=number, left=left
        )
        self._refresh()
        due = done * LOG_LINES // max(1, planned)
        if not self._live and due > self._lines:
            self._lines = due
            words = f"{number}, {left}: {case}" if left else f"{number}: {case}"
            self._console.print(Text(words), soft_wrap=True)

    def message(self, text: str) -> None:
        """A line above the bar that stays: a crash, a replaced round."""
        self._console.print(Text(" ".join(text.split())), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live:
            self._bar.refresh()
