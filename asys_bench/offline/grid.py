"""The SAEs of a grid: `--grid sae.k=16,32 sae.learning_rate=1e-3,3e-3` is four plans.

An axis is a field of the plan and its values; the points are the product of all axes, the last axis
fastest. Every point is a plan of its own with a folder of its own, and each of its SAEs is one task, which
depends on no other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asys_bench.config.paths import format_path, parse_path
from asys_bench.config.problems import ConfigError, Origin, Problem
from asys_bench.contracts.names import file_slug
from asys_bench.offline.plan import Job, OfflinePlan, read_plan

OPTION = "--grid"
MAX_POINTS = 10_000
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True, slots=True)
class Axis:
    """A field of the plan (`sae.k`) and the texts of its values, as `--set` takes them."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of the grid. values: of each axis, in their order; folder: its name below `--out`."""

    values: tuple[tuple[str, str], ...]
    folder: str
    plan: OfflinePlan


@dataclass(frozen=True, slots=True)
class Task:
    """One SAE of one point."""

    point: Point
    job: Job

    @property
    def folder(self) -> str:
        """Of its checkpoints, below `--out`."""
        return f"{self.point.folder}/{file_slug(self.job.label)}"


def read_axes(texts: Sequence[str]) -> list[Axis]:
    """The axes that `--grid` names.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    axes: list[Axis] = []
    problems: list[Problem] = []
    for text in texts:
        origin = Origin(f"{OPTION} {text}")
        fix = "write --grid sae.k=16,32,64"
        try:
            path, rest = parse_path(text)
        except ValueError:
            path, rest = (), text
        values = [value.strip() for value in _split(rest[1:])]
        if not path or not rest.startswith("="):
            problems.append(Problem.at(origin, "must be path=value,value,...", fix=fix))
        elif not all(values):
            problems.append(Problem.at(origin, "has an empty value", fix=fix))
        elif len(set(values)) < len(values):
            problems.append(Problem.at(origin, "has a value twice", fix="name each value once"))
        elif any(axis.path == format_path(path) for axis in axes):
            fix = "give all values of one field together"
            problems.append(Problem.at(origin, "is an axis already", fix=fix))
        else:
            axes.append(Axis(format_path(path), tuple(values)))
    number = 1
    for axis in axes:
        number *= len(axis.values)
    if number > MAX_POINTS:
        message = f"{number:,} points are more than {MAX_POINTS:,}"
        problems.append(Problem.at(Origin(OPTION), message, fix="leave values out"))
    if problems:
        raise ConfigError(problems)
    return axes


def read_points(
    run_dir: Path, config: str | None, sets: Sequence[str], axes: Sequence[Axis]
) -> list[Point]:
    """The plans of all points, each read as `read_plan` reads it.

    Raises:
        ConfigError: everything that is wrong with any of them.
    """
    points: list[Point] = []
    problems: list[Problem] = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = tuple((axis.path, value) for axis, value in zip(axes, values, strict=True))
        try:
            plan = read_plan(run_dir, config, sets, [f"{path}={value}" for path, value in chosen])
        except ConfigError as error:
            problems += error.problems
        else:
            points.append(Point(chosen, _folder(axes, values), plan))
    if problems:
        raise ConfigError(problems)
    return points


def read_tasks(points: Sequence[Point], hooks: Sequence[str]) -> list[Task]:
    """Every SAE of every point, given the archive's hooks.

    Raises:
        ValueError: as `OfflinePlan.jobs`.
    """
    return [Task(point, job) for point in points for job in point.plan.jobs(hooks)]


def _folder(axes: Sequence[Axis], values: Sequence[str]) -> str:
    """`k-16_learning_rate-1e-3`: the last part of each path, where no other axis has the same."""
    lasts = [str(parse_path(axis.path)[0][-1]) for axis in axes]
    names = [
        last if lasts.count(last) == 1 else axis.path
        for axis, last in zip(axes, lasts, strict=True)
    ]
    return file_slug("_".join(f"{a}-{b}" for a, b in zip(names, values, strict=True)))


def _split(text: str) -> list[str]:
    """At commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
