"""`asys-run pin`: keep shards of a run's archive from being deleted; list what is there.

Archives with a budget (`max_gib`, `max_age_s`, `min_free_gib`) delete their oldest shards. A pinned shard
stays, and counts towards the budget. Without SHARD the shards are listed, with the host steps of their
rows; SHARD is a name as it is listed, or a glob such as 'policy.mlp/*'.

A pin is the empty file <shard>.pin beside the shard (archive-0-0-3.pin). A run may go on meanwhile: a
shard is either pinned or was deleted before.

Exit codes: 0 done · 1 it could not be pinned · 2 there is no such run or shard.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import printable
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run

if TYPE_CHECKING:
    from asys_bench.sinks.archive.pins import StoredShard

_fail = partial(fail, "asys-run pin", None)


EXAMPLES = (
    ("asys-run pin runs/<run>", "list the shards"),
    ("asys-run pin runs/<run> 'policy.mlp/*'", "keep those of one hook"),
    ("asys-run pin runs/<run> 'policy.mlp/*' --off", "let them be deleted again"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, SHARD..., `--off`."""
    add_run_argument(parser)
    parser.add_argument("shards", nargs="*", metavar="SHARD", help="a shard's name, or a glob")
    parser.add_argument("--off", action="store_true", help="let them be deleted again")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A row per shard."""
    if arguments.off and not arguments.shards:
        return _fail("--off needs a SHARD", EXIT_USAGE)
    try:
        run_dir: Path = find_run(arguments.run)
    except RunGoneError as error:
        return _fail(str(error), EXIT_USAGE)
    from asys_bench.sinks.archive.pins import pin, stored_shards

    try:
        if arguments.shards:
            changed = {one.name for one in pin(run_dir, arguments.shards, pinned=not arguments.off)}
        shards = stored_shards(run_dir)
    except FileNotFoundError:
        return _fail(f"{run_dir} has no archive", EXIT_USAGE)
    except OSError as error:
        return _fail(str(error), EXIT_FAILED)
    if not arguments.shards:
        _show(shards, console)
    elif not changed:
        return _fail(
            f"no shard fits {' '.join(arguments.shards)}: asys-run pin lists them", EXIT_USAGE
        )
    else:
        _show([one for one in shards if one.name in changed], console)
    kept = [one for one in shards if one.pinned]
    mib = sum(one.bytes for one in kept) / (1 << 20)
    console.print(f"{len(kept)} of {len(shards)} shards are pinned: {mib:,.1f} MiB", markup=False)
    return EXIT_OK


def _show(shards: list[StoredShard], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("shard", "rows", "MiB", "host steps", ""):
        left = column in ("shard", "")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for one in shards:
        counts = one.sidecar
        known = counts is not None and counts.first_step is not None
        table.add_row(
            escape(printable(one.name)),
            "open" if counts is None else f"{counts.rows:,}",
            f"{one.bytes / (1 << 20):,.1f}",
            f"{counts.first_step:,} - {counts.last_step:,}" if counts and known else "",
            "pinned" if one.pinned else "",
        )
    console.print(table)
