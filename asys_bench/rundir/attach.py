"""Finding a run and attaching to its stats page from outside, as any user of the machine may."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asys_bench.config.document import run_config_data
from asys_bench.contracts.run_files import RUN_FILE, RunFileError, is_run, read_run_file, runs_in
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.rundir.live_run import (
    LiveRunError,
    attach_page,
    host_lives,
)
from asys_bench.store.mirror import CopyError, local_folder
from asys_bench.store.uri import is_uri, without_secrets

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


def add_run_argument(parser: argparse.ArgumentParser, *, copies: bool = False) -> None:
    """RUN, as `find_run` takes it."""
    uri = ", or the URI of its copy (s3://, gs://, file://)" if copies else ""
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help=f"directory or id of a run{uri}; default: the newest one under runs/",
    )


def find_run(name: str | None, folder: Path = RUNS, *, copies: bool = False) -> Path:
    """The directory of a run: as given, by its id under `folder`, or the newest one there.

    copies: also the URI of a run's copy, which is only read; its folder's files come when they are opened.

    Raises:
        RunGoneError: there is none.
    """
    if name is not None and is_uri(name):
        if not copies:
            raise RunGoneError(
                f"{without_secrets(name)}: a copy in a store is only read (asys-run verify, report, train, "
                "evaluate, export) or gone on with (asys-run --resume); name the run's directory"
            )
        try:
            return local_folder(name)
        except CopyError as error:
            raise RunGoneError(str(error)) from None
    if name is not None:
        for path in (Path(name), folder / name):
            if is_run(path):
                return path
        raise RunGoneError(
            f"{name}: no {RUN_FILE} there; name a run's directory, e.g. {folder}/<run>"
        )
    found = runs_in(folder)
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
    except (RunFileError, LiveRunError) as error:
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
        run_config_data(path),
    )
