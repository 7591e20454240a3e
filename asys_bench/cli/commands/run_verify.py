"""`asys-run verify`: check every shard, checkpoint and file of a run; repair what a kill left torn.

RUN may be the URI of a run's copy: each file is fetched, compared with the copy's manifest and checked.
A run may go on meanwhile: what is being written is not taken for damage. States:

  ok             whole
  being written  a live process is at it; whole as far as it goes
  torn           its writer died in its last record; what came before is good
  damaged        bytes changed, or something is missing
  leftover       an unfinished file of a killed writer; nothing is missing without it
  foreign        not a file that a run writes; left alone

--repair cuts torn and damaged tails off (a kill at any moment leaves a readable file), closes shards,
sets damaged checkpoints aside, points `latest` at a whole one and removes leftovers. What it cuts off
is kept beside the file as *.torn.

--cluster BOOK checks the accounts of a cluster: of each forwarder taken = acked + dropped + in flight, and
over all machines acked <= accepted <= acked + window, equal when all is quiet. RUN (or a folder of runs) adds
what forwarders of this machine say themselves. Accounts:

  equal          what was acknowledged was accepted, and nothing else
  moving         the identities hold; packets or acknowledgements are under way
  silent         a forwarder that has not said yet what it counts
  in doubt N     accepted, and counted as dropped by the forwarder: acknowledgements were lost
  receiver lost N  acknowledged by a receiver that left no last account
  broken         an identity does not hold

Exit codes: 0 all is well · 1 something is torn or damaged (also when it was repaired) · 2 there is no
such run, or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import printable_lines
from asys_bench.contracts.run_files import ARCHIVE_DIR, RUN_FILE, SAE_DIR
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run
from asys_bench.store.uri import is_uri, without_secrets

if TYPE_CHECKING:
    from asys_bench.rundir.verify import Finding, Verification

_ONLY_READ = "a copy in a store is only read: repair the run itself, then asys-run upload it"
_OF_A_RUN = (RUN_FILE, ARCHIVE_DIR, SAE_DIR)
_STYLES = {"ok": "green", "torn": "yellow", "damaged": "red", "being written": "cyan"}

_fail = partial(fail, "asys-run verify", None)


EXAMPLES = (
    ("asys-run verify", "the newest run under runs/"),
    ("asys-run verify runs/<run> --repair", "mend what a kill tore"),
    ("asys-run verify s3://bucket/runs/<run> --json", "a run's copy, for a program to read"),
    ("asys-run verify --cluster BOOK", "the accounts of a cluster"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, `--repair`, `--discard-torn`, `--all`, `--json`."""
    add_run_argument(parser, copies=True)
    parser.add_argument("--repair", action="store_true", help="mend what is torn or damaged")
    parser.add_argument(
        "--discard-torn",
        action="store_true",
        help="with --repair: do not keep the bytes that are cut off",
    )
    parser.add_argument(
        "--cluster", metavar="BOOK", help="check the accounts of this address book's receivers"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A row per file, a line per loss."""
    if arguments.cluster is not None:
        if arguments.repair or arguments.discard_torn:
            return _fail(
                "--cluster only reads; verify and repair a receiver's run by its folder", EXIT_USAGE
            )
        return _cluster(arguments, console)
    if arguments.discard_torn and not arguments.repair:
        return _fail("--discard-torn needs --repair", EXIT_USAGE)
    if arguments.repair and is_uri(arguments.run or ""):
        return _fail(_ONLY_READ, EXIT_USAGE)
    try:
        run_dir = _folder(arguments.run)
    except RunGoneError as error:
        return _fail(str(error), EXIT_USAGE)
    from asys_bench.rundir.verify import verify_run

    found = verify_run(run_dir, repair=arguments.repair, keep_torn=not arguments.discard_torn)
    if arguments.json:
        json.dump(found.to_plain(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        uri = without_secrets(arguments.run) if is_uri(arguments.run or "") else None
        _show(found, console, uri, repaired=arguments.repair)
    return EXIT_FAILED if found.damaged else EXIT_OK


def _cluster(arguments: argparse.Namespace, console: Console) -> int:
    from asys_bench.cluster.book import BookError
    from asys_bench.cluster.view import check_text
    from asys_bench.rundir.cluster_accounts import verify_cluster

    try:
        found = verify_cluster(arguments.cluster, Path(arguments.run) if arguments.run else None)
    except (BookError, RunGoneError) as error:
        return _fail(str(error), EXIT_USAGE)
    if not found.cluster.statuses:
        return _fail(f"{found.cluster.uri}: no receiver has said there what it counts", EXIT_USAGE)
    if arguments.json:
        json.dump(found.to_plain(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        console.print(check_text(found.cluster, found.check, console.width))
        for problem in found.problems:
            console.print(Text(printable_lines(problem), "bold red"), soft_wrap=True)
    return EXIT_OK if found.holds else EXIT_FAILED


def _folder(name: str | None) -> Path:
    """Like `find_run`, and also a folder whose run.json is gone but whose archive is there."""
    if name is not None and any(os.path.lexists(Path(name) / file) for file in _OF_A_RUN):
        return Path(name)
    return find_run(name, copies=True)


def _show(found: Verification, console: Console, uri: str | None, *, repaired: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("file", "left"), ("state", "left"), ("rows", "right"), ("", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for one in found.findings:
        rows = "" if one.rows is None else f"{one.rows:,}"
        cells = (printable_lines(one.path), one.state.value, rows, printable_lines(_remark(one)))
        table.add_row(*(escape(cell) for cell in cells), style=_STYLES.get(one.state))
    console.print(table)
    console.print(printable_lines(_verdict(found, uri, repaired)), markup=False, soft_wrap=True)


def _remark(one: Finding) -> str:
    parts = [one.detail] if one.detail else []
    if one.rows is not None and one.state.value in ("torn", "damaged"):
        lost = "unknown rows" if one.lost_rows is None else f"{one.lost_rows:,} rows"
        parts.append(f"{one.rows:,} readable, {lost} and {one.lost_bytes:,} bytes lost")
    if one.rows_twice:
        parts.append(f"{one.rows_twice:,} rows are also in another shard; readers skip them by key")
    if one.repair:
        parts.append(one.repair)
    return "; ".join(parts)


def _verdict(found: Verification, uri: str | None, repaired: bool) -> str:
    """uri: of the copy that was verified, as it may be shown."""
    document = found.to_plain()
    counts = ", ".join(f"{n} {state}" for state, n in document["states"].items() if n)
    goes_on = " (it goes on)" if found.live else ""
    text = f"{uri or found.run_dir}{goes_on}: {counts}; {document['archive_rows']:,} archived rows"
    if found.damaged and not repaired:
        mend = f"mend it with: asys-run verify {found.run_dir} --repair"
        text += f"\n{mend if uri is None else _ONLY_READ}"
    return text
