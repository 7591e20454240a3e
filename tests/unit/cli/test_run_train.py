"""What `asys-run train` prints."""

from __future__ import annotations

import io

from rich.console import Console

from asys_bench.cli.commands.run_train import _fail, _table
from asys_bench.offline import HookResult
from asys_bench.offline.progress import TrainingProgress
from asys_bench.sae import RunningMetrics

NAME = "[/red]\x1b[2J"


def test_a_name_from_an_archive_moves_no_cursor() -> None:
    said = io.StringIO()
    console = Console(file=said, width=200)
    console.print(_table([HookResult(NAME, True, 0, RunningMetrics(), None, None)]))
    with TrainingProgress(console, NAME, 1) as progress:
        progress.say(f"{NAME}: goes on")
    _fail(console, f"{NAME}: damaged\nand more", 1)
    assert "\x1b" not in said.getvalue()
    assert said.getvalue().count("[/red]\\x1b[2J") == 3
    assert "damaged\nand more" in said.getvalue()
