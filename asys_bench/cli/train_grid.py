"""`asys-run train --grid`: SAEs of a grid, here one after another or on a Ray cluster, and their table."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.cluster.ray_cluster import RayUnavailableError, joined
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import printable
from asys_bench.offline.archive_packets import archived_rows
from asys_bench.offline.grid import Task
from asys_bench.offline.grid_on_ray import GridOnRay, NodesUnfitError
from asys_bench.offline.grid_results import (
    CSV_FILE,
    DONE,
    FAILED,
    JSON_FILE,
    RULE,
    GridFolder,
    GridFolderError,
    GridResult,
    stand,
)
from asys_bench.offline.grid_training import train_task
from asys_bench.offline.progress import TrainingProgress
from asys_bench.run.process_state import SignalHandlers
from asys_bench.sae.training.device import prepare_process
from asys_bench.sinks.archive import Archive, ArchiveError, open_archive
from asys_bench.system.files.atomic import make_private_folder


class GridCommand:
    """One `asys-run train --grid`, with its signals. source: the archive as other nodes get at it."""

    def __init__(
        self, console: Console, archive: Archive, source: str, out: Path, tasks: Sequence[Task]
    ) -> None:
        self._console, self._archive, self._source = console, archive, source
        self._out, self._tasks = out, tasks
        self._signal: int | None = None

    def run(self, address: str | None) -> int:
        """address: of a Ray cluster; None: here, one after another."""
        run_id = self._archive.run_dir.resolve().name
        handlers = SignalHandlers((signal.SIGINT, signal.SIGTERM), self._on_signal)
        try:
            make_private_folder(self._out)
            folder = GridFolder(self._out, self._tasks, run_id)
            left = folder.left()
            if len(left) < len(self._tasks):
                self._say(f"{len(self._tasks) - len(left)} of {len(self._tasks)} SAEs are done")
            results = self._on_ray(address, left) if address else self._here(left)
            for result in results if left else ():
                folder.add(result)
                self._tell(result, len(folder.in_order()))
            folder.write()
        except (GridFolderError, NodesUnfitError, RayUnavailableError) as error:
            return self._fail(str(error), EXIT_USAGE)
        except OSError as error:
            return self._fail(f"{self._out}: {error}", EXIT_FAILED)
        finally:
            handlers.restore()
        return self._end(folder.in_order())

    def _here(self, tasks: Sequence[Task]) -> Iterator[GridResult]:
        prepare_process()
        for task in tasks:
            if self._signal is not None:
                return
            try:
                yield self._train(task)
            except ArchiveError as error:
                yield GridResult.without(task, FAILED, str(error))

    def _train(self, task: Task) -> GridResult:
        archive = open_archive(self._archive.run_dir, task.point.plan.repeats)
        rows = archived_rows(archive, task.job.hook) * task.point.plan.epochs
        label = f"{task.point.folder}: {task.job.label}"
        with TrainingProgress(self._console, label, rows) as progress:
            return train_task(
                archive, task, self._out, should_stop=self._stops, on_progress=progress.update
            )

    def _on_ray(self, address: str, tasks: Sequence[Task]) -> Iterator[GridResult]:
        with joined(address) as ray, GridOnRay(ray, self._out, self._source) as grid:
            waits = grid.waits_for(tasks)
            if waits is not None:
                self._say(waits, "yellow")
            yield from grid.run(tasks, self._stops)

    def _stops(self) -> bool:
        return self._signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number

    def _tell(self, result: GridResult, known: int) -> None:
        name = f"{known} of {len(self._tasks)}: {result.folder} on {result.node or 'no node'}"
        if result.state == FAILED:
            self._say(f"{name} failed: {result.error}", "red")
        elif result.state == DONE:
            self._say(f"{name}: FVU {_number(result.fvu, '.4f')}, {result.wall_s:.1f} s")

    def _end(self, results: Sequence[GridResult]) -> int:
        self._console.print(table(results))
        self._say(RULE)
        self._say(f"{self._out / JSON_FILE}, {self._out / CSV_FILE}")
        if any(result.state == FAILED for result in results):
            return EXIT_FAILED
        if len(results) == len(self._tasks) and all(one.state == DONE for one in results):
            return EXIT_OK
        self._say("stopped: the same command goes on from here")
        return 128 + (self._signal or signal.SIGINT)

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(printable(text), style=style, markup=False, soft_wrap=True)

    def _fail(self, message: str, code: int) -> int:
        return fail("asys-run train", self._console, message, code)


def table(results: Sequence[GridResult]) -> Table:
    """A line per SAE, a column per axis."""
    standing = stand(results)
    axes = list(dict.fromkeys(name for result in results for name in result.values))
    names = ("hook", *axes, "", "steps", "FVU", "of all", "L0", "dead", "s", "node")
    shown = Table(*(escape(name) for name in names), box=None)
    for result in results:
        mark = "best" if result.folder in standing.best else ""
        mark = mark or ("front" if result.folder in standing.front else "")
        shown.add_row(
            escape(printable(result.label)),
            *(escape(printable(result.values.get(axis, ""))) for axis in axes),
            mark if result.state == DONE else result.state,
            f"{result.steps:,}",
            _number(result.fvu, ".4f") + ("" if result.held_out_rows else " (training rows)"),
            _number(result.fvu_all, ".4f"),
            _number(result.l0, ".1f"),
            _number(result.dead_fraction, ".1%"),
            f"{result.wall_s:.1f}",
            escape(printable(result.node)),
        )
    return shown


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
