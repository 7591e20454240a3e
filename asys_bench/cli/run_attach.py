"""Finding a run and attaching to its stats page from outside, as any user of the machine may."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from asys_bench.contracts.stats import SlotField, StatsError, StatsPage
from asys_bench.pipeline.liveness import start_time

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
            if (path / "run.json").is_file():
                return path
        raise RunGoneError(
            f"{name}: no run.json there; name a run's directory, e.g. {folder}/<run>"
        )
    found = [path for path in folder.glob("*/run.json") if not path.is_symlink()]
    if not found:
        raise RunGoneError(f"{folder}/ has no runs; start one, or name a run's directory")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def attach_run(path: Path) -> AttachedRun:
    """Attach to the stats page of the run in `path`.

    Raises:
        RunGoneError: its host process has ended, or is another user's.
    """
    try:
        document = json.loads((path / "run.json").read_text())
        pid, where = int(document["host_pid"]), str(document["stats_page"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunGoneError(f"{path}: run.json cannot be read ({error})") from error
    ended = f"{path}: this run has ended; see it with: asys-run report {path}"
    try:
        fd = os.open(where, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise RunGoneError(
            f"{path}: {where} cannot be opened ({error.strerror}); only the user who started the "
            "run may"
        ) from error
    except OSError:
        raise RunGoneError(ended) from None
    try:
        page = StatsPage.attach(fd)
    except (StatsError, OSError, ValueError):
        os.close(fd)
        raise RunGoneError(ended) from None  # the pid is somebody else's by now
    host = page.slot("host")
    if host.get(SlotField.PID) != pid or host.get(SlotField.PROCESS_START) != start_time(pid):
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
        found = yaml.safe_load((path / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
