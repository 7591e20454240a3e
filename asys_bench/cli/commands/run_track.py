"""`asys-run track`: send a run's summary and report to its trackers (wandb, trackio, MLflow).

`asys-run` does so by itself when a run has ended. After `observe()` (write the report first), or where a
tracker could not be reached, this does: the report becomes an artifact of the tracker's run, with the summary
beside it.

Exit codes: 0 every tracker has them · 1 one has not (it says why) · 2 there is no such run, or it has no
monitor `tracker`.
"""

from __future__ import annotations

import argparse
import logging
from functools import partial

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

_fail = partial(fail, "asys-run track")

EXAMPLES = (
    ("asys-run report runs/<run>", "write the report of a run under observe()"),
    ("asys-run track runs/<run>", "send it, and the summary"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN."""
    from asys_bench.rundir.attach import add_run_argument

    add_run_argument(parser)


def main(arguments: argparse.Namespace, console: Console) -> int:
    """One line per tracker."""
    from asys_bench.contracts.run_files import RunFileError
    from asys_bench.monitors.tracker.ending import send_ending
    from asys_bench.rundir.attach import RunGoneError, find_run

    logging.basicConfig(level=logging.WARNING)
    try:
        run_dir = find_run(arguments.run).resolve()
        ended = list(send_ending(run_dir))
    except (RunGoneError, RunFileError) as error:
        return _fail(console, str(error), EXIT_USAGE)
    if not ended:
        return _fail(console, f"{run_dir} has no monitor of kind tracker", EXIT_USAGE)
    for one in ended:
        if not one.problem:
            where = f" {one.url}" if one.url else ""
            console.print(f"{one.service}{where}: sent", markup=False, soft_wrap=True)
    problems = [f"{one.service}: {one.problem}" for one in ended if one.problem]
    if problems:
        return _fail(console, "\n".join(problems), EXIT_FAILED)
    return EXIT_OK
