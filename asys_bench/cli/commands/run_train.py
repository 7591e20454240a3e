"""`asys-run train`: train SAEs from a run's archive, with the trainer that trains them live.

Without --config the run's own trainer settings are used. FILE is another run's configuration, or a
plan with the fields epochs, hooks, repeats, seed, device, group, sae, overrides, variants, transcoders,
start_from; --set changes one of them. With --set group.size=2 two processes train each SAE together.
Ctrl-C stops after the current step and writes a checkpoint; the same command goes on from there.
Checkpoints (SAELens folders) are in DIR/<hook>/latest. An epoch trains on each row once. FVU is on
held-out rows without outliers (rows of far larger norm, which are not trained on), "of all" with them.

--grid trains the SAEs of every combination of values, each in DIR/<values>/<hook>/latest, one after
another or, with --ray, wherever a Ray cluster has CPUs or GPUs for them. DIR/grid.json and DIR/grid.csv
have the results; what is done is not trained again. With --ray an SAE has sae.threads CPUs, one where that
is not set; all nodes must see DIR, and the archive too unless it is given by its copy's URI.

Exit codes: 0 done · 1 failed (it says what) · 2 the configuration or the command line is wrong ·
130 stopped by Ctrl-C · 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import printable
from asys_bench.run.process_state import SignalHandlers

if TYPE_CHECKING:
    from asys_bench.offline import HookResult, Job, OfflinePlan
    from asys_bench.sae.group.processes import GroupProcesses
    from asys_bench.sae.training.device import TrainingDevice
    from asys_bench.sinks.archive import Archive

OUT_DIR, GRID_DIR = "sae-offline", "sae-grid"
START_S = 120.0
"""For the other ranks of a group to import torch."""

_fail = partial(fail, "asys-run train")


EXAMPLES = (
    ("asys-run train --archive runs/<run>/archive", "with the run's own trainer settings"),
    ("asys-run train --archive runs/<run> --set epochs=3 --set sae.k=32 --out runs/k32", "others"),
    ("asys-run train --archive runs/<run> --grid sae.k=16,32,64 --ray auto", "an SAE per value"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """`--archive`, `--config`, `--set`, `--grid`, `--ray`, `--out`."""
    parser.add_argument(
        "--archive",
        required=True,
        metavar="DIR",
        help="a run's `archive` folder, or the run, or the URI of its copy (s3://, gs://, file://)",
    )
    parser.add_argument("--config", metavar="FILE", help="a plan, or a run's configuration")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one field, e.g. --set epochs=3 or --set sae.k=32 (repeatable)",
    )
    parser.add_argument(
        "--grid",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATH=VALUES",
        help="train with each of these values, and with every combination of several: sae.k=16,32,64",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="train the SAEs of a grid on this Ray cluster (auto: the one that this machine belongs to)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=f"checkpoints go there; default: <run>/{OUT_DIR} ({GRID_DIR} of a grid), of a copy "
        f"<run>-{OUT_DIR} here",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """One SAE per hook, one after another, and a table of what came out."""
    from asys_bench.contracts.run_files import ARCHIVE_DIR
    from asys_bench.offline.grid import read_axes, read_points, read_tasks
    from asys_bench.sinks.archive import ArchiveError, open_archive
    from asys_bench.store.mirror import CopyError, beside_copy, local_folder
    from asys_bench.store.uri import is_uri

    if arguments.ray and not arguments.grid:
        return _fail(console, "--ray needs a --grid of SAEs", EXIT_USAGE)
    remote = is_uri(arguments.archive)
    try:
        place = arguments.archive.removesuffix(f"/{ARCHIVE_DIR}") if remote else arguments.archive
        run_dir = _run_dir(local_folder(place))
    except CopyError as error:
        return _fail(console, str(error), EXIT_USAGE)
    points = read_points(run_dir, arguments.config, arguments.set, read_axes(arguments.grid))
    plan = points[0].plan
    if arguments.grid and any(point.plan.group is not None for point in points):
        reason = "a grid trains each SAE in one process; --set group=null, or train them one by one"
        return _fail(console, f"group.size {plan.ranks}: {reason}", EXIT_USAGE)
    try:
        archive = open_archive(run_dir, plan.repeats)
    except ArchiveError as error:
        return _fail(console, str(error), EXIT_USAGE)
    stored = archive.deleted_by_reason().get("stored")
    if stored is not None:
        console.print(
            f"{stored.rows:,} rows of {stored.shards:,} shards are in the run's store alone "
            "(storage.delete_local_after_s); --archive with its URI has them all",
            style="yellow",
            soft_wrap=True,
        )
    try:
        tasks = read_tasks(points, archive.hooks)
    except ValueError as error:
        return _fail(console, str(error), EXIT_USAGE)
    name = GRID_DIR if arguments.grid else OUT_DIR
    try:
        own = beside_copy(run_dir, name) if remote else _own_folder(run_dir, name)
        out = Path(arguments.out) if arguments.out else own
    except OSError as error:
        return _fail(console, f"{error}; name another folder with --out", EXIT_USAGE)
    if arguments.grid:
        from asys_bench.cli.train_grid import GridCommand

        source = place if remote else str(run_dir.resolve())
        return GridCommand(console, archive, source, out, tasks).run(arguments.ray)
    return _Command(console, archive, plan, run_dir, out).run([task.job for task in tasks])


def _own_folder(run_dir: Path, name: str) -> Path:
    """Where checkpoints go in the run's folder. Raises OSError: a link lies there."""
    from asys_bench.system.files.below import real_folder

    out = run_dir / name
    return real_folder(run_dir, name) if os.path.lexists(out) else out


class _Command:
    """One `asys-run train`, with its signals."""

    def __init__(
        self, console: Console, archive: Archive, plan: OfflinePlan, run_dir: Path, out: Path
    ) -> None:
        self._console, self._archive, self._plan = console, archive, plan
        self._run_dir, self._out = run_dir, out
        self._signal: int | None = None

    def run(self, jobs: list[Job]) -> int:
        from asys_bench.sae import CheckpointError
        from asys_bench.sae.exchange import ExchangeError
        from asys_bench.sae.group.processes import GroupProcesses, devices_for
        from asys_bench.sae.ranks import GroupError
        from asys_bench.sae.training.device import (
            DeviceMemoryError,
            DeviceUnavailableError,
            open_device,
            prepare_process,
        )
        from asys_bench.sinks.archive import ArchiveError

        try:
            devices = devices_for(self._plan.device, self._plan.ranks)
            device = open_device(devices[0])
        except DeviceUnavailableError as error:
            return _fail(self._console, str(error), EXIT_USAGE)
        if self._plan.device != "cpu":
            self._console.print(f"trains on {device.name} (device: {self._plan.device})")
        prepare_process()
        handlers = SignalHandlers((signal.SIGINT, signal.SIGTERM), self._on_signal)
        results: list[HookResult] = []
        group: GroupProcesses | None = None
        try:
            if self._plan.group is not None:
                places = [{"device": one, "why": "asked for"} for one in devices[1:]]
                group = GroupProcesses(self._plan.group.split, places, device=device.tensors)
                group.wait_until_ready(START_S)
            for job in jobs:
                results.append(self._train(job, device, group))
                if self._signal is not None:
                    break
        except GroupError as error:
            advice = "the same command goes on from the last checkpoint"
            return _fail(self._console, f"{error}; {advice}", EXIT_FAILED)
        except (
            ArchiveError, CheckpointError, DeviceMemoryError, ExchangeError, ValueError
        ) as error:  # fmt: skip
            return _fail(self._console, str(error), EXIT_FAILED)
        finally:
            if group is not None:
                group.close()
            handlers.restore()
            if results:
                self._console.print(_table(results))
        if all(result.finished for result in results) and len(results) == len(jobs):
            return EXIT_OK
        self._console.print("stopped: the same command goes on from here")
        return 128 + (self._signal or signal.SIGINT)  # as asys-run

    def _train(self, job: Job, device: TrainingDevice, group: GroupProcesses | None) -> HookResult:
        from asys_bench.contracts.names import file_slug
        from asys_bench.offline import HookTraining, archived_rows
        from asys_bench.offline.progress import TrainingProgress

        plan = self._plan
        job.config.apply_threads()
        rows = archived_rows(self._archive, job.hook) * plan.epochs
        with TrainingProgress(self._console, job.label, rows) as progress:
            training = HookTraining(
                self._archive,
                job,
                self._out / file_slug(job.label),
                epochs=plan.epochs,
                seed=plan.seed,
                model_name=self._run_dir.resolve().name,
                start_from=plan.start_of(job.label),
                device=device,
                group=group,
                should_stop=lambda: self._signal is not None,
                on_progress=progress.update,
            )
            if training.checkpoint is not None:
                progress.say(f"{job.label}: goes on from {training.checkpoint}")
            return training.run()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number


def _run_dir(path: Path) -> Path:
    """The run of an archive folder; `path` itself when it has an `archive`."""
    from asys_bench.contracts.run_files import ARCHIVE_DIR

    inside = path.name == ARCHIVE_DIR and not (path / ARCHIVE_DIR).is_dir()
    return path.parent if inside else path


def _table(results: list[HookResult]) -> Table:
    names = ("hook", "steps", "rows", "FVU", "of all", "outliers", "L0", "dead", "checkpoint")
    table = Table(*names, box=None)
    for result in results:
        held_out, running = result.held_out, result.running
        measured = held_out or running
        mark = "" if held_out else " (training rows)"
        table.add_row(
            escape(printable(result.label)),
            f"{result.steps:,}",
            f"{running.rows_trained:,}",
            f"{measured.fvu:.4f}{mark}",
            f"{held_out.fvu_all:.4f}" if held_out else "-",
            f"{running.rows_outlying:,}",
            f"{measured.l0:.1f}",
            f"{running.dead_fraction:.1%}",
            escape(str(result.checkpoint)) if result.checkpoint else "none: no rows",
        )
    return table
