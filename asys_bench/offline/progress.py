"""Progress of an offline training: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from asys_bench.contracts.names import printable
from asys_bench.sae import RunningMetrics

LINE_EVERY_S = 10.0


class TrainingProgress:
    """Shows one hook's training; `rows` is how many will be taken in altogether."""

    def __init__(self, console: Console, hook: str, rows: int) -> None:
        self._console, self._hook, self._rows = console, printable(hook), rows
        self._started = self._spoke_at = time.monotonic()
        self._first_trained: int | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(self._hook, total=max(1, rows), note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def update(self, running: RunningMetrics) -> None:
        """Show where the training is."""
        now = time.monotonic()
        if self._first_trained is None:
            self._first_trained, self._started = running.rows_trained, now
        spent_s = max(1e-9, now - self._started)
        rate = (running.rows_trained - self._first_trained) / spent_s
        note = (
            f"{rate:,.0f} rows/s  FVU {running.fvu:.4f}  L0 {running.l0:.1f}  "
            f"step {running.steps:,}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=running.rows_ingested, note=note)
        elif now - self._spoke_at >= LINE_EVERY_S:
            self._spoke_at = now
            share = running.rows_ingested / max(1, self._rows)
            self.say(f"{self._hook}: {share:.0%}  {note}")
