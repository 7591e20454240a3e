"""`asys-run diff`: which features are more frequent in one run, or at one moment, than in another.

The newest SAEs of both runs are run over the rows that their sinks of kind `reservoir` kept. A difference
is a rate at least twice the other, declared with a false discovery rate of 1 % over the features of both
SAEs; the one with the most evidence is first. Two models that began with other weights have other
features, and nearly all will differ.

Exit codes: 0 done · 2 there is no such run, or no reservoir of a hook that both have.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.cli.commands.run_timeline import steps_of
from asys_bench.contracts.exit_codes import EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import matches, printable
from asys_bench.rundir.attach import RunGoneError, find_run

if TYPE_CHECKING:
    from asys_bench.change.timeline.difference import Comparison

SHOWN = 20
_fail = partial(fail, "asys-run diff", None)


EXAMPLES = (
    ("asys-run diff runs/a runs/b", "the whole of both runs"),
    ("asys-run diff runs/a runs/a --a :5000 --b 5000:", "two moments of one run"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN_A, RUN_B, `--hook`, `--a`, `--b`."""
    parser.add_argument("run_a", metavar="RUN_A", help="directory or id of a run")
    parser.add_argument("run_b", metavar="RUN_B", help="another, or the same with --a and --b")
    parser.add_argument("--hook", default="*", metavar="GLOB", help="these hooks only")
    for side in "ab":
        parser.add_argument(
            f"--{side}",
            type=steps_of,
            metavar="FROM:TO",
            help=f"host steps of RUN_{side.upper()}; default: all",
        )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A table of differences per hook."""
    try:
        folders = [find_run(name) for name in (arguments.run_a, arguments.run_b)]
    except RunGoneError as error:
        return _fail(str(error), EXIT_USAGE)
    from asys_bench.change.reservoir.read import ReservoirError
    from asys_bench.change.timeline.difference import differences_of
    from asys_bench.rundir.live_run import ReadingError
    from asys_bench.rundir.open_run import open_run
    from asys_bench.sae import CheckpointError

    try:
        hooks = [name for name in open_run(folders[0]).hooks if matches(name, arguments.hook)]
    except ReadingError as error:
        return _fail(str(error), EXIT_USAGE)
    compared = 0
    for hook in hooks:
        try:
            found = differences_of(
                (folders[0], arguments.a),
                (folders[1], arguments.b),
                hook,
                _names(folders, arguments),
            )
        except (CheckpointError, ReservoirError, ValueError, OSError) as error:
            console.print(f"{printable(hook)}: {error}", markup=False, soft_wrap=True)
            continue
        if found is not None:
            compared += 1
            _show(hook, found, console)
    if not compared:
        return _fail(
            f"no hook of {arguments.hook!r} has an SAE and a reservoir (a sink of kind `reservoir`) on both "
            "sides",
            EXIT_USAGE,
        )
    return EXIT_OK


def _names(folders: list[Path], arguments: argparse.Namespace) -> tuple[str, str]:
    def name(folder: Path, steps: tuple[float, float] | None) -> str:
        return folder.name if steps is None else f"{folder.name} {steps[0]:.0f}:{steps[1]:.0f}"

    a, b = name(folders[0], arguments.a), name(folders[1], arguments.b)
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def _show(hook: str, found: Comparison, console: Console) -> None:
    console.print(
        f"{printable(hook)}: {len(found.differences)} differences among {found.features:,} features "
        f"({found.units_a:,} and {found.units_b:,} units of rows)",
        markup=False,
    )
    if not found.differences:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("SAE of", "feature", "rate in A", "rate in B", "p", "alike"):
        table.add_column(column, justify="left" if column == "SAE of" else "right")
    for one in found.differences[:SHOWN]:
        table.add_row(
            printable(one.of), str(one.feature), f"{one.rate_a:.3%}", f"{one.rate_b:.3%}", f"{one.p:.1e}",
            str(one.also) if one.also else "",
        )  # fmt: skip
    console.print(table)
