"""metrics.csv as time series. Counters become rates; nothing is interpolated.

The file of a killed run may end in half a line, and that of a restarted monitor has gaps: both are
read as far as they go.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from asys_bench.monitors.metrics_csv import OLD_COLUMNS
from asys_bench.system.files.below import text_lines

Points = Sequence[tuple[float, float]]
"""(seconds since the run's start, value), ascending."""


@dataclass(frozen=True, slots=True, order=True)
class SeriesKey:
    """What a row of metrics.csv is about."""

    slot: str
    metric: str
    hook: str = ""
    group: str = ""
    reason: str = ""
    window: str = "run"
    stat: str = ""


@dataclass(frozen=True)
class Metrics:
    """Every series of a run."""

    series: dict[SeriesKey, list[tuple[float, float]]] = field(default_factory=dict)

    def find(self, metric: str, *, window: str | None = None, stat: str = "") -> list[SeriesKey]:
        """The series of a metric, in order of slot, hook, group and reason."""
        return sorted(
            key
            for key in self.series
            if key.metric == metric and key.stat == stat and window in (None, key.window)
        )

    def points(self, key: SeriesKey) -> list[tuple[float, float]]:
        return self.series.get(key, [])

    @property
    def end_s(self) -> float:
        """Time of the last row."""
        return max((points[-1][0] for points in self.series.values() if points), default=0.0)


def read_metrics(path: Path) -> Metrics:
    """The series of a metrics.csv; none when there is no such file."""
    found: dict[SeriesKey, list[tuple[float, float]]] = {}
    rows = csv.DictReader(text_lines(path, below=path.parent))
    with suppress(csv.Error):  # a field of more than 128 KiB: no monitor wrote it
        for row in rows:
            if set(OLD_COLUMNS) - row.keys() or None in row.values():
                continue
            try:
                point = float(row["time_s"]), float(row["value"] or "nan")
            except ValueError:
                continue
            key = SeriesKey(
                *(row[c] for c in ("slot", "metric", "hook", "group", "reason", "window", "stat"))
            )
            found.setdefault(key, []).append(point)
    return Metrics(found)


def rate(points: Points) -> list[tuple[float, float]]:
    """Growth per second of a counter between its readings; 0 where it went backwards."""
    return [
        (t1, max(0.0, v1 - v0) / (t1 - t0))
        for (t0, v0), (t1, v1) in itertools.pairwise(points)
        if t1 > t0 and math.isfinite(v0) and math.isfinite(v1)
    ]


def since_set(points: Points) -> Points:
    """A gauge's points from the first that is not 0: until it is set, the page holds a 0."""
    first = next((index for index, (_, value) in enumerate(points) if value != 0), len(points))
    return points[first:] or points


def total(many: Iterable[Points]) -> list[tuple[float, float]]:
    """The sum of several series that were read at the same times."""
    sums: dict[float, float] = {}
    for points in many:
        for t, value in points:
            sums[t] = sums.get(t, 0.0) + (value if math.isfinite(value) else 0.0)
    return sorted(sums.items())


def thin(points: Points, most: int = 240) -> list[tuple[float, float]]:
    """At most about `most` points: lowest and highest of each stretch, so that spikes stay."""
    known = [point for point in points if math.isfinite(point[1])]
    if len(known) <= most:
        return known
    size = math.ceil(2 * len(known) / most)
    kept: list[tuple[float, float]] = []
    for first in range(0, len(known), size):
        part = known[first : first + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept
