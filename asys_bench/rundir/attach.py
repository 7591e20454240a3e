"""Finding a run and attaching to its stats page from outside, as any user of the machine may."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asys_bench.config.document import read_run_config
from asys_bench.config.problems import ConfigError
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.rundir.live_run import (
    RUN_FILE,
    LiveRunError,
    attach_page,
    host_lives,
    read_run_file,
)
from asys_bench.system.files.below import is_file, scan_if_there

RUNS = Path("runs")


class RunGoneError(RuntimeError):
    """There is no such run, or it does not run any more; says what can be done instead."""


@dataclass(frozen=True)
class AttachedRun:
    """A live run. The page is only read."""

    path: Path
    run_id: str
    step_unit: str
    page: StatsPage
    started_unix_ns: int
    config: Mapping[str, Any]
    """The resolved configuration; empty when it cannot be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.page.close()


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """RUN, as `find_run` takes it."""
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="directory or id of a run; default: the newest one under runs/",
    )


def find_run(name: str | None, folder: Path = RUNS) -> Path:
    """The directory of a run: as given, by its id under `folder`, or the newest one there.

    Raises:
        RunGoneError: there is none.
    """
    if name is not None:
        for path in (Path(name), folder / name):
            if is_file(path / RUN_FILE):
                return path
        raise RunGoneError(
            f"{name}: no run.json there; name a run's directory, e.g. {folder}/<run>"
        )
    found = [path for path, _ in scan_if_there(folder) if is_file(path / RUN_FILE, below=folder)]
    if not found:
        raise RunGoneError(f"{folder}/ has no runs; start one, or name a run's directory")
    return max(found, key=lambda path: (path / RUN_FILE).stat().st_mtime)


def attach_run(path: Path) -> AttachedRun:
    """Attach to the stats page of the run in `path`.

    Raises:
        RunGoneError: its host process has ended, or is another user's.
    """
    ended = f"{path}: this run has ended; see it with: asys-run report {path}"
    try:
        document = read_run_file(path)
        if not host_lives(document):
            raise RunGoneError(ended)
        page = attach_page(path, document)
    except LiveRunError as error:
        raise RunGoneError(str(error)) from error
    host = page.slot("host")
    if host.get(SlotField.PID) != document["host_pid"]:
        page.close()
        raise RunGoneError(ended)
    return AttachedRun(
        path,
        str(document.get("run_id", path.name)),
        str(document.get("step_unit", "step")),
        page,
        int(document.get("started_unix_ns", 0)),
        _config(path),
    )


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = read_run_config(path).to_data()
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}
