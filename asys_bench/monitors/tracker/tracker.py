"""What a tracker of experiments must do, and how a run of ours is known there.

- `open` makes the tracker's run, or goes on with the one that an earlier process or attempt of the same run
  has made (`TrackedRun`).
- `log` takes points in order; where it fails, all of them are given again. After two failures in a row `open`
  is called before.
- Host steps are a metric of their own (`STEP`): a host that goes on from an older step makes steps again,
  and trackers that have one step for all drop such rows.
- Every call may wait for a network and may raise anything: only `feed.Feed` and `ending` call them.

Which run it is stands in `<run>/trackers/<service>.json`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from asys_bench.contracts.run_files import TRACKED_SCHEMA, TRACKERS_DIR
from asys_bench.system.files import make_private_folder, replace_file
from asys_bench.system.files.below import read_json

KIND = "tracker"
"""The monitor's."""
STEP = "host_step"
"""The host's step, logged with every point."""
PROJECT = "asys-i"
"""Of runs whose configuration and host name none."""


_Plain = TypeVar("_Plain")


def _from_plain(cls: type[_Plain], data: object) -> _Plain | None:
    """A dataclass from its fields; None where others are there, one is missing or of another type."""
    types = get_type_hints(cls)
    fits = (
        isinstance(data, dict)
        and data.keys() == types.keys()
        and all(isinstance(data[name], kind) for name, kind in types.items())
    )
    return cls(**cast("dict[str, Any]", data)) if fits else None


@dataclass(frozen=True, slots=True)
class Point:
    """One reading: the host's step, seconds since the epoch, and what was read by name."""

    step: int
    unix_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run at a tracker. place: its entity (wandb) or tracking URI (MLflow); url: where people see it."""

    service: str
    id: str
    project: str
    place: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class HostRun:
    """A wandb run that the host has of its own. shared: it lets other processes write to it."""

    id: str
    entity: str
    project: str
    group: str
    url: str
    shared: bool = False

    @property
    def link(self) -> str:
        """Where it is seen; its path where it has no page (yet)."""
        return self.url or "/".join(part for part in (self.entity, self.project, self.id) if part)

    @classmethod
    def from_plain(cls, data: object) -> HostRun | None:
        """From run.json; None where that names none."""
        return _from_plain(cls, data)


@dataclass(frozen=True)
class About:
    """What a tracker is told of the run. config: without secrets (`public_config`)."""

    run_id: str
    own_id: str
    """The id of ours where the tracker lets it be chosen (`own_id`)."""
    step_unit: str
    config: Mapping[str, Any]
    known: TrackedRun | None = None
    """What an earlier process has made there."""
    host: HostRun | None = None


class Tracker(ABC):
    """See the module."""

    service: str

    @abstractmethod
    def open(self, about: About) -> TrackedRun:
        """Make the run, or go on with it. Raises ImportError: its package is not installed."""

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None: ...

    @abstractmethod
    def attach(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """What the run came to, and files as artifacts, in the run that `open` gave."""

    @abstractmethod
    def finish(self) -> None:
        """Everything is sent when it returns."""


def own_id(run_id: str, began_unix_ns: int | None) -> str:
    """The id of a run at trackers that let it be chosen: the same for all attempts and processes."""
    return "asys-" + hashlib.sha256(f"{run_id}/{began_unix_ns}".encode()).hexdigest()[:16]


def read_tracked(run_dir: Path, service: str) -> TrackedRun | None:
    """What stands in the run's folder; None: nothing that can be read."""
    try:
        data = read_json(run_dir / TRACKERS_DIR / f"{service}.json", below=run_dir)
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or data.pop("schema", None) != TRACKED_SCHEMA:
        return None
    found = _from_plain(TrackedRun, data)
    return found if found is not None and found.service == service else None


def write_tracked(run_dir: Path, tracked: TrackedRun) -> None:
    """Raises OSError: the disk refused."""
    folder = run_dir / TRACKERS_DIR
    make_private_folder(folder)
    data = json.dumps({"schema": TRACKED_SCHEMA, **asdict(tracked)}, indent=2) + "\n"
    replace_file(folder / f"{tracked.service}.json", data.encode(), sync=False)
