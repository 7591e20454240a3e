"""What the SAEs of a grid came to: `grid.json`, `grid.csv` and which one is best.

Rule: of the SAEs of one hook (or of the same hooks) the best has the lowest FVU on held-out rows; of equal
ones the one with fewer active features, then the one that comes first in the grid. FVU falls as more
features may be active, so the `front` is told as well: the SAEs that no other of their hook beats in one of
FVU and L0 without being beaten in the other.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from asys_bench.offline.grid import Task
from asys_bench.offline.hook_training import HookResult
from asys_bench.system.files.atomic import replace_file
from asys_bench.system.files.below import read_json

SCHEMA = "asys.grid/1"
JSON_FILE, CSV_FILE = "grid.json", "grid.csv"
RULE = (
    "best: lowest FVU on held-out rows of its hook, then fewest active features, then first in the grid; "
    "front: no SAE of its hook has both a lower FVU and a lower L0"
)
DONE, STOPPED, FAILED = "done", "stopped", "failed"


class GridFolderError(RuntimeError):
    """A folder holds another grid's results; says what differs."""


@dataclass(frozen=True, slots=True)
class GridResult:
    """One SAE. values: of each axis. state: `done`, `stopped` (the same command goes on) or `failed`."""

    values: Mapping[str, str]
    label: str
    hooks: tuple[str, ...]
    state: str
    folder: str
    """Of its checkpoints, below the grid's folder."""
    error: str = ""
    steps: int = 0
    rows_trained: int = 0
    rows_outlying: int = 0
    held_out_rows: int = 0
    """0: none was held out, and FVU and L0 are those of training batches."""
    fvu: float | None = None
    fvu_all: float | None = None
    l0: float | None = None
    dead_fraction: float | None = None
    threads: int = 1
    device: str = "cpu"
    node: str = ""
    wall_s: float = 0.0

    @classmethod
    def of(cls, task: Task, result: HookResult, **more: Any) -> GridResult:
        measured = result.held_out or result.running
        return cls(
            **_named(task),
            state=DONE if result.finished else STOPPED,
            steps=result.steps,
            rows_trained=result.running.rows_trained,
            rows_outlying=result.running.rows_outlying,
            held_out_rows=result.held_out.rows if result.held_out else 0,
            fvu=_finite(measured.fvu),
            fvu_all=_finite(result.held_out.fvu_all) if result.held_out else None,
            l0=_finite(measured.l0),
            dead_fraction=_finite(result.running.dead_fraction),
            **more,
        )

    @classmethod
    def without(cls, task: Task, state: str, error: str = "", **more: Any) -> GridResult:
        """Of one that was not trained to its end."""
        return cls(**_named(task), state=state, error=error, **more)


@dataclass(frozen=True, slots=True)
class Standing:
    """Of the results: folders of those that are best of their hooks, and on the front."""

    best: frozenset[str]
    front: frozenset[str]


def stand(results: Iterable[GridResult]) -> Standing:
    """By RULE; SAEs that are not done, or were measured on no held-out rows, are not compared."""
    by_hooks: dict[tuple[str, ...], list[GridResult]] = defaultdict(list)
    for result in results:
        if result.state == DONE and result.held_out_rows and None not in (result.fvu, result.l0):
            by_hooks[result.hooks].append(result)
    best, front = set(), set()
    for rivals in by_hooks.values():
        best.add(min(rivals, key=_rank).folder)  # min takes the first of equal ones
        front |= {one.folder for one in rivals if not any(_beats(two, one) for two in rivals)}
    return Standing(frozenset(best), frozenset(front))


def _rank(result: GridResult) -> tuple[float, float]:
    assert result.fvu is not None
    assert result.l0 is not None
    return result.fvu, result.l0


def _beats(one: GridResult, two: GridResult) -> bool:
    (fvu, l0), (other_fvu, other_l0) = _rank(one), _rank(two)
    return fvu <= other_fvu and l0 <= other_l0 and (fvu, l0) != (other_fvu, other_l0)


class GridFolder:
    """The results in the folder of a grid, which are written as they come."""

    def __init__(self, out: Path, tasks: Sequence[Task], archive: str) -> None:
        """archive: the run that the rows are of.

        Raises:
            GridFolderError: there is a grid of another archive or with other settings.
        """
        self.out, self._tasks, self._archive = out, tasks, archive
        self._plans = {task.point.folder: task.point.plan.model_dump(mode="json") for task in tasks}
        self.results: dict[str, GridResult] = {}
        self._others: list[dict[str, Any]] = []
        """Of points that an earlier grid of this folder had and this one has not."""
        self._other_plans: dict[str, Any] = {}
        self._read()

    def left(self) -> list[Task]:
        """The tasks that are not done, or whose checkpoints are gone."""
        done = {folder for folder, one in self.results.items() if one.state == DONE}
        return [
            task
            for task in self._tasks
            if task.folder not in done or not (self.out / task.folder).is_dir()
        ]

    def add(self, result: GridResult) -> None:
        """Keep a result, on the disk too. Raises OSError."""
        self.results[result.folder] = result
        self.write()

    def in_order(self) -> list[GridResult]:
        """Of the tasks that have one."""
        return [self.results[task.folder] for task in self._tasks if task.folder in self.results]

    def write(self) -> None:
        """Raises OSError."""
        results = self.in_order()
        standing = stand(results)
        shown = [
            {**asdict(one), "best": one.folder in standing.best, "front": one.folder in standing.front}
            for one in results
        ]  # fmt: skip
        document = {
            "schema": SCHEMA, "archive": self._archive, "rule": RULE, "results": shown,
            "earlier": self._others, "plans": {**self._other_plans, **self._plans},
        }  # fmt: skip
        data = json.dumps(document, indent=1, allow_nan=False).encode()
        replace_file(self.out / JSON_FILE, data, sync=False)
        replace_file(self.out / CSV_FILE, _csv(shown).encode(), sync=False)

    def _read(self) -> None:
        path = self.out / JSON_FILE
        try:
            document = read_json(path, below=self.out)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise GridFolderError(f"{path} cannot be read: {error}") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise GridFolderError(f"{path} is not of the schema {SCHEMA}")
        if document.get("archive") != self._archive:
            raise GridFolderError(
                f"{self.out} holds a grid over the archive of {document.get('archive')}, not "
                f"{self._archive}; name another folder with --out"
            )
        plans = document.get("plans")
        self._compare(plans if isinstance(plans, dict) else {})
        wanted, seen = {task.folder for task in self._tasks}, set[str]()
        for entry in [*(document.get("results") or ()), *(document.get("earlier") or ())]:
            result = _result(path, entry)
            if result.folder in wanted:
                self.results.setdefault(result.folder, result)
            elif result.folder not in seen:
                self._others.append(entry)
            seen.add(result.folder)

    def _compare(self, plans: Mapping[str, Any]) -> None:
        for folder, theirs in plans.items():
            ours = self._plans.get(folder)
            if ours is None:
                self._other_plans[folder] = theirs
                continue
            differing = [
                f"{name} was {_short(a)}, is {_short(b)}"
                for name, a, b in _differences(theirs, ours)
            ]
            if differing:
                raise GridFolderError(
                    f"{self.out / folder} was trained with other settings: {'; '.join(differing[:5])}; "
                    "name another folder with --out, or delete that one"
                )


def _named(task: Task) -> dict[str, Any]:
    return {
        "values": dict(task.point.values),
        "label": task.job.label,
        "hooks": (task.job.hook, *task.job.others),
        "folder": task.folder,
    }


def _result(path: Path, entry: Any) -> GridResult:
    known = {field.name for field in fields(GridResult)}
    try:
        found = {name: value for name, value in entry.items() if name in known}
        return GridResult(**{**found, "hooks": tuple(found["hooks"])})
    except (AttributeError, KeyError, TypeError):
        raise GridFolderError(f"{path} holds {_short(entry)}, which is no result") from None


def _differences(theirs: Any, ours: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Fields that differ: (path, theirs, ours)."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            found
            for name in sorted({*theirs, *ours})
            for found in _differences(
                theirs.get(name), ours.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [] if theirs == ours else [(path, theirs, ours)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(shown: Sequence[Mapping[str, Any]]) -> str:
    """A line per SAE, a column per axis."""
    axes = list(dict.fromkeys(name for one in shown for name in one["values"]))
    columns = [name for name in (shown[0] if shown else {}) if name not in ("values", "hooks")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, *columns])
    for one in shown:
        writer.writerow(
            [*(one["values"].get(axis, "") for axis in axes), *(one[c] for c in columns)]
        )
    return text.getvalue()
