"""`asys-run report`: a run as one HTML page that opens offline: what the SAEs found, curves, cost.

With `--all-features` another file: the pages of `asys-run eye` with every feature of every SAE, to search and
to sort without a server.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.reporter import ReportError
from asys_bench.contracts.run_files import (
    FEATURES_FILE,
    REPORT_FILE,
    RESERVOIR_DIR,
    RunFileError,
    read_run_file,
)
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run
from asys_bench.store.uri import is_uri
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import is_folder

if TYPE_CHECKING:
    from asys_bench.reports.run_report.births import Births
    from asys_bench.reports.run_report.record import RunRecord

TIMELINES_S = 20.0
"""Of the time that a run's end waits for its report; SAEs that are left are `asys-run timeline`'s."""


EXAMPLES = (
    ("asys-run report", "of the newest run under runs/"),
    ("asys-run report runs/<run> --out page.html", "of one run, written elsewhere"),
    ("asys-run report s3://bucket/runs/<run>", "of a run's copy, written here"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, `--all-features` and `--out`."""
    add_run_argument(parser, copies=True)
    parser.add_argument(
        "--all-features",
        action="store_true",
        help=f"every feature of every SAE in {FEATURES_FILE} instead, at most 50 MB",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="default: in the run's directory, of a copy <run>-<file> here",
    )


def write_within(run_dir: Path, seconds: float) -> Path | None:
    """The report of a run that has just ended, written by a process of its own; None: not in time.

    Whatever happens to that process, the run has ended as it did. Its exit code alone says nothing where
    the host ignores SIGCHLD; the file is there whole or not at all.
    """
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "report", str(run_dir)]
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    target = run_dir / REPORT_FILE
    return target if done.returncode == EXIT_OK and target.is_file() else None


def _births(run_dir: Path, labels: Sequence[str], *, keep: bool) -> Births:
    """Timelines of the SAEs whose hooks have a reservoir; kept in the run's folder if asked."""
    from asys_bench.change.timeline.timeline import timelines_of
    from asys_bench.reports.run_report.births import Births, births_of
    from asys_bench.rundir.timeline_document import write_timeline
    from asys_bench.sinks.archive.reader import open_archive
    from asys_bench.sinks.archive.sidecar import ArchiveError

    if not is_folder(run_dir / RESERVOIR_DIR, below=run_dir):
        return Births()
    timelines = timelines_of(run_dir, labels, within_s=TIMELINES_S)
    for timeline in timelines:
        if keep and not timeline.problem:
            with suppress(OSError):
                write_timeline(run_dir, timeline)
    try:
        archive = open_archive(run_dir, "last")
    except ArchiveError:
        archive = None
    return births_of(timelines, archive)


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0; 1 when the file cannot be written; 2 when there is no such run."""
    from asys_bench.placement.apply import use_torch_threads
    from asys_bench.reports.run_report.record import read_run

    use_torch_threads()
    try:
        run_dir = find_run(arguments.run, copies=True)
        read_run_file(run_dir)
        # The file of all features takes nothing of the record; reading that is long.
        record = None if arguments.all_features else read_run(run_dir)
    except (RunGoneError, RunFileError, ReportError) as error:
        return fail("asys-run report", console, str(error), EXIT_USAGE)
    copy = is_uri(arguments.run or "")
    name = FEATURES_FILE if arguments.all_features else REPORT_FILE
    target = run_dir / name
    if copy:
        from asys_bench.store.mirror import beside_copy

        target = beside_copy(run_dir, name)
    target = Path(arguments.out) if arguments.out else target
    if record is None:
        document, said = _features(run_dir, console)
    else:
        document, said = _report(run_dir, record, keep=not copy)
    try:
        replace_file(target, document, sync=False)  # mode 0600: it shows activations
    except OSError as error:
        return fail("asys-run report", console, f"{target}: {error}", EXIT_FAILED)
    for line in (f"{target}: {len(document) / 1e6:.1f} MB", *said):
        console.print(line, markup=False, soft_wrap=True)
    return EXIT_OK


def _report(run_dir: Path, record: RunRecord, *, keep: bool) -> tuple[bytes, list[str]]:
    """The page, and what is missing in it. keep: timelines that are made for it, in the run's folder."""
    from asys_bench.reports.run_report.analysis import analyse
    from asys_bench.reports.run_report.inputs import read_vocabulary
    from asys_bench.reports.run_report.page import render_run

    analyses = analyse(run_dir, record.saes)
    births = _births(run_dir, record.saes, keep=keep)
    document = render_run(record, analyses, read_vocabulary(run_dir), births)
    return document.encode(), [f"{one.hook}: {one.problem}" for one in analyses if one.problem]


def _features(run_dir: Path, console: Console) -> tuple[bytes, list[str]]:
    """The file of all features, and what is in it."""
    from asys_bench.eye.one_file.all_features import all_features

    made = all_features(run_dir, lambda line: console.print(line, markup=False, soft_wrap=True))
    return made.document, made.said
