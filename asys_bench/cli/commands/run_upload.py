"""`asys-run upload`: send what of a run is not in its store yet (`storage.uri`), and say what is missing.

It goes on where the run's own worker, or an earlier call, was ended. What is sent is read back and
compared before the copy shows it. Nothing is deleted here.

Exit codes: 0 the copy has everything · 1 it has not (it says what and why; the files are here) · 2
there is no such run, it has no store, or the store is another run's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from asys_bench.monitors.upload.uploader import Progress, Uploader
    from asys_bench.store.objects import StoreError

PATIENCE_S = 60.0
"""By default a store that refuses is asked again for that long."""
LOCK_S = 5.0

_fail = partial(fail, "asys-run upload")


EXAMPLES = (
    ("asys-run upload runs/<run>", "finish what the run did not have the time for"),
    ("asys-run upload runs/<run> --uri s3://bucket/runs/<run>", "a run that had no store"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, `--uri`, `--within`."""
    from asys_bench.rundir.attach import add_run_argument

    add_run_argument(parser)
    parser.add_argument("--uri", help="where the copy is; default: the run's storage.uri")
    parser.add_argument(
        "--within",
        type=float,
        metavar="S",
        help=f"give up after this many seconds; default: once the store has refused for {PATIENCE_S:g} s",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """One line: what was sent, or what is missing and why."""
    from asys_bench.config.document import run_config_data
    from asys_bench.contracts.run_files import RunFileError, read_run_file
    from asys_bench.monitors.readable import bytes_text
    from asys_bench.monitors.upload.lock import UploadBusyError, UploadLock
    from asys_bench.monitors.upload.uploader import Progress, StoreTakenError, Uploader
    from asys_bench.rundir.attach import RunGoneError, find_run
    from asys_bench.store.objects import ObjectStore, StoreError
    from asys_bench.store.uri import place_of, without_secrets

    try:
        run_dir = find_run(arguments.run).resolve()
        storage = run_config_data(run_dir).get("storage")
        uri = arguments.uri or (storage.get("uri") if isinstance(storage, dict) else None)
        if not isinstance(uri, str):
            return _fail(
                console, f"{run_dir} has no storage.uri; name a place with --uri", EXIT_USAGE
            )
        try:
            place = place_of(uri, read_run_file(run_dir)["run_id"])
        except ValueError as error:
            return _fail(console, f"{without_secrets(uri)}: {error}", EXIT_USAGE)
        lock = UploadLock(run_dir, LOCK_S)
    except (RunGoneError, RunFileError, UploadBusyError, OSError) as error:
        return _fail(console, str(error), EXIT_USAGE)
    until = float("inf") if arguments.within is None else time.monotonic() + arguments.within
    told = Progress()
    problem: StoreError | OSError | None = None
    try:
        store = ObjectStore(place)
        uploader = Uploader(run_dir, store, should_stop=lambda: time.monotonic() > until)
        told = uploader.progress
        problem = _send(uploader, until)
    except (StoreTakenError, RunFileError) as error:
        return _fail(console, str(error), EXIT_USAGE)
    except (StoreError, OSError) as error:
        problem = error
    finally:
        lock.release()
    if problem is not None or told.pending_files:
        left = "not everything"
        if told.pending_files:
            left = f"{told.pending_files:,} files ({bytes_text(told.pending_bytes)})"
        why = f": {problem}" if problem is not None else ": the time was over"
        return _fail(
            console,
            f"{left} of {run_dir} not sent to {place}{why}\n"
            f"they are kept here; go on with: asys-run upload {run_dir}",
            EXIT_FAILED,
        )
    sent = f"{told.files:,} files ({bytes_text(told.bytes)}) sent; " if told.files else ""
    console.print(f"{sent}{place} has everything of {run_dir}", markup=False, soft_wrap=True)
    for note in _notes(told, run_dir):
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    return EXIT_OK


def _send(uploader: Uploader, until: float) -> StoreError | None:
    """Send all; None: done, or the time is over before any refusal. Else why the store refused last."""
    from asys_bench.store.objects import LASTING, Backoff, StoreError

    backoff, refused_at = Backoff(), float("inf")
    refusal: StoreError | None = None
    while True:
        try:
            if uploader.send(final=True):
                return None
            if time.monotonic() > until:
                return refusal
            refused_at, refusal = float("inf"), None
            backoff.reset()
            time.sleep(0.2)  # a file changed while it was sent
        except StoreError as error:
            now = time.monotonic()
            refused_at, refusal = min(refused_at, now), error
            pause_s = backoff.next_s()
            last = min(until, refused_at + PATIENCE_S)
            if error.reason in LASTING or now + pause_s > last:
                return error
            time.sleep(pause_s)


def _notes(told: Progress, run_dir: Path) -> Iterator[str]:
    if told.open_shards:
        yield (
            f"{told.open_shards:,} shards are not closed and were not sent; where nobody writes them any "
            f"more: asys-run verify {run_dir} --repair"
        )
    if told.missed_shards:
        yield (
            f"{told.missed_shards:,} shards had been deleted here before they were sent, and the copy does "
            "not have them"
        )
